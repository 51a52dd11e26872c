"""The links: gradient transformations of one idea each, to be put into a chain."""

from normopt.transforms.decaying import add_decay as add_decay
from normopt.transforms.multiplying import scale_by_param_norm as scale_by_param_norm
from normopt.transforms.multiplying import scale_by_path as scale_by_path
from normopt.transforms.normalizing import clip_blocks as clip_blocks
from normopt.transforms.normalizing import normalize_blocks as normalize_blocks
