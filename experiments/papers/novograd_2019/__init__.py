"""Ginsburg et al., "Stochastic Gradient Methods with Layer-wise Adaptive Moments"."""
