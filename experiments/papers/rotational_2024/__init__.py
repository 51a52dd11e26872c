"""Kosson et al., "Rotational Equilibrium: How Weight Decay Balances Learning", 2024."""

TITLE = (
    "Rotational Equilibrium: How Weight Decay Balances Learning Across Neural Networks"
)
SOURCE = (
    "Kosson, Messmer, Jaggi, 2024, arXiv 2305.17212: the words of its sections 3 and 4 "
    "on a random walk and on networks, which it shows in figures."
)
