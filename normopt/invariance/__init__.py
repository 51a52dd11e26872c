"""Finds which leaves, and which axes of them, a loss is scale-invariant in."""

from normopt.invariance.searching import (
    find_scale_invariance as find_scale_invariance,
)
