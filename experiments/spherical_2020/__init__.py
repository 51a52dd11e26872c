"""Roburin et al., "Spherical Perspective on Learning with Batch Norm", 2020."""
