"""Roburin et al., "Spherical Perspective on Learning with Normalization Layers"."""

TITLE = "Spherical Perspective on Learning with Normalization Layers"
SOURCE = (
    "Roburin et al., 2020, arXiv 2006.13382: the words of its section 3, and the table "
    "of the published code, whose seven optimizers and seven settings are 49 cells."
)
