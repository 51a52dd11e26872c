"""The links: gradient transformations of one idea each, to be put into a chain."""

from normopt.keeping import BlockNumbers as BlockNumbers
from normopt.transforms.block_rms import ScaleByBlockRmsState as ScaleByBlockRmsState
from normopt.transforms.block_rms import scale_by_block_rms as scale_by_block_rms
from normopt.transforms.caution import cautious as cautious
from normopt.transforms.centering import center_blocks as center_blocks
from normopt.transforms.decaying import add_decay as add_decay
from normopt.transforms.decaying import decay_weights as decay_weights
from normopt.transforms.decoupling import DecoupleLengthState as DecoupleLengthState
from normopt.transforms.decoupling import decouple_length as decouple_length
from normopt.transforms.descending import steepest as steepest
from normopt.transforms.moments import ScaleByBlockAdamState as ScaleByBlockAdamState
from normopt.transforms.moments import scale_by_block_adam as scale_by_block_adam
from normopt.transforms.multiplying import (
    AverageGradientsState as AverageGradientsState,
)
from normopt.transforms.multiplying import average_gradients as average_gradients
from normopt.transforms.multiplying import scale_by_block_size as scale_by_block_size
from normopt.transforms.multiplying import scale_by_param_norm as scale_by_param_norm
from normopt.transforms.multiplying import scale_by_path as scale_by_path
from normopt.transforms.nadam import ScaleByNadamState as ScaleByNadamState
from normopt.transforms.nadam import scale_by_nadam as scale_by_nadam
from normopt.transforms.normalizing import clip_blocks as clip_blocks
from normopt.transforms.normalizing import normalize_blocks as normalize_blocks
from normopt.transforms.observing import ObserveState as ObserveState
from normopt.transforms.observing import observe as observe
from normopt.transforms.orthogonalizing import orthogonalize as orthogonalize
from normopt.transforms.projecting import project_if_invariant as project_if_invariant
from normopt.transforms.rounding import (
    CompensateRoundingState as CompensateRoundingState,
)
from normopt.transforms.rounding import compensate_rounding as compensate_rounding
from normopt.transforms.scheduling import FollowedState as FollowedState
from normopt.transforms.scheduling import ScheduledState as ScheduledState
from normopt.transforms.sphere import RetractToSphereState as RetractToSphereState
from normopt.transforms.sphere import brake_radial as brake_radial
from normopt.transforms.sphere import retract_to_sphere as retract_to_sphere
from normopt.transforms.step_lengths import (
    BoundRelativeStepState as BoundRelativeStepState,
)
from normopt.transforms.step_lengths import bound_relative_step as bound_relative_step
from normopt.transforms.step_lengths import keep_norm as keep_norm
from normopt.transforms.stiefel import retract_to_stiefel as retract_to_stiefel
from normopt.transforms.tangent import TraceOnTangentState as TraceOnTangentState
from normopt.transforms.tangent import project_tangent as project_tangent
from normopt.transforms.tangent import trace_on_tangent as trace_on_tangent
from normopt.transforms.turning import HyperballState as HyperballState
from normopt.transforms.turning import RotationalState as RotationalState
