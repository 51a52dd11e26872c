"""The named optimizers: chains of links, without arithmetic of their own."""

from normopt.optimizers.block_normalized import clipped as clipped
from normopt.optimizers.block_normalized import normalized as normalized
