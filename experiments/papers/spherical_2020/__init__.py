"""Roburin et al., "Spherical Perspective on Learning with Normalization Layers"."""
