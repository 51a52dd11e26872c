"""Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019."""

TITLE = "Decoupled Weight Decay Regularization"
SOURCE = (
    "Loshchilov and Hutter, 2019, arXiv 1711.05101, and its Keras implementation. "
    "There are figures and words, and no value."
)
