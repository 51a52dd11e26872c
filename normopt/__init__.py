"""Optimizers that care about the geometry of a parameter, for JAX and optax."""

from normopt.describing import describe as describe
from normopt.norms import block_angles as block_angles
from normopt.norms import block_norms as block_norms
from normopt.norms import norm_names as norm_names
from normopt.norms import register_norm as register_norm
from normopt.optimizers import clipped as clipped
from normopt.optimizers import normalized as normalized
from normopt.paths import leaf_paths as leaf_paths
from normopt.paths import path_of as path_of
from normopt.registry import config as config
from normopt.registry import make as make
from normopt.registry import names as names
from normopt.rules import by_path as by_path
from normopt.rules import output_channels as output_channels
from normopt.transforms import add_decay as add_decay
from normopt.transforms import clip_blocks as clip_blocks
from normopt.transforms import normalize_blocks as normalize_blocks
from normopt.transforms import scale_by_param_norm as scale_by_param_norm
from normopt.transforms import scale_by_path as scale_by_path
