"""Yu et al., "Block-Normalized Gradient Method", 2017."""

TITLE = "Block-Normalized Gradient Method"
SOURCE = (
    "Yu, Huang, Lin, Salakhutdinov, Carbonell, 2017, arXiv 1707.04822, and the example "
    "of its Keras implementation. The example's text has figures alone; what its "
    "notebooks print, of one run each, stands beside ours. What is claimed of networks "
    "is what the abstract says."
)
