"""Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019."""
