"""Ginsburg et al., "Stochastic Gradient Methods with Layer-wise Adaptive Moments"."""

TITLE = "NovoGrad"
SOURCE = (
    "Ginsburg et al., Stochastic Gradient Methods with Layer-wise Adaptive Moments for "
    "Training of Deep Networks, 2019, arXiv 1905.11286, and the documentation of "
    "TensorFlow Addons. Both have words, and no number but the half of the memory."
)
