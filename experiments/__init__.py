"""Experiments: training runs and reproductions that use only normopt's public face.

They live outside the library so that it depends on jax and optax alone.
"""
