"""Finds the weights, and their axes, whose norm does not change the loss."""

from normopt.invariance.searching import (
    find_scale_invariance as find_scale_invariance,
)
