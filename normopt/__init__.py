"""Optax optimizers that control the norms of gradients, steps and weights."""

from importlib import metadata as _metadata
from types import ModuleType as _ModuleType

from normopt.checks import LargeDecayWarning as LargeDecayWarning
from normopt.decays import DecayForms as DecayForms
from normopt.decays import decay_from as decay_from
from normopt.describing import describe as describe
from normopt.equilibria import Equilibrium as Equilibrium
from normopt.equilibria import equilibrium as equilibrium
from normopt.invariance import find_scale_invariance as find_scale_invariance
from normopt.leafwise import NoBlocksWarning as NoBlocksWarning
from normopt.matrices import output_matrices as output_matrices
from normopt.norms import block_angles as block_angles
from normopt.norms import block_norms as block_norms
from normopt.norms import norm_names as norm_names
from normopt.norms import register_norm as register_norm
from normopt.norms import spectral as spectral
from normopt.observing import Observation as Observation
from normopt.observing import Spike as Spike
from normopt.observing import observations as observations
from normopt.observing import spikes as spikes
from normopt.observing import summary as summary
from normopt.optimizers import adamg as adamg
from normopt.optimizers import adamp as adamp
from normopt.optimizers import adams as adams
from normopt.optimizers import adamsrt as adamsrt
from normopt.optimizers import adamw as adamw
from normopt.optimizers import clipped as clipped
from normopt.optimizers import hyperball as hyperball
from normopt.optimizers import muon as muon
from normopt.optimizers import nadamw as nadamw
from normopt.optimizers import normalized as normalized
from normopt.optimizers import normuon as normuon
from normopt.optimizers import novograd as novograd
from normopt.optimizers import rotational as rotational
from normopt.optimizers import scion as scion
from normopt.optimizers import sgdmrt as sgdmrt
from normopt.optimizers import sgdp as sgdp
from normopt.optimizers import sgdw as sgdw
from normopt.paths import leaf_paths as leaf_paths
from normopt.paths import path_of as path_of
from normopt.registry import config as config
from normopt.registry import make as make
from normopt.registry import names as names
from normopt.rules import by_path as by_path
from normopt.rules import output_channels as output_channels
from normopt.rules import whole_leaves as whole_leaves
from normopt.schedules import WarmRestarts as WarmRestarts
from normopt.schedules import WarmRestartsState as WarmRestartsState
from normopt.schedules import cosine_restarts as cosine_restarts
from normopt.schedules import current_eta as current_eta
from normopt.schedules import normalized_decay as normalized_decay
from normopt.schedules import restart as restart
from normopt.sharding import state_sharding as state_sharding
from normopt.starting import centered as centered
from normopt.starting import on_sphere as on_sphere
from normopt.transforms import AverageGradientsState as AverageGradientsState
from normopt.transforms import BlockNumbers as BlockNumbers
from normopt.transforms import BoundRelativeStepState as BoundRelativeStepState
from normopt.transforms import CompensateRoundingState as CompensateRoundingState
from normopt.transforms import DecoupleLengthState as DecoupleLengthState
from normopt.transforms import FollowedState as FollowedState
from normopt.transforms import HyperballState as HyperballState
from normopt.transforms import ObserveState as ObserveState
from normopt.transforms import RetractToSphereState as RetractToSphereState
from normopt.transforms import RotationalState as RotationalState
from normopt.transforms import ScaleByBlockAdamState as ScaleByBlockAdamState
from normopt.transforms import ScaleByBlockRmsState as ScaleByBlockRmsState
from normopt.transforms import ScaleByNadamState as ScaleByNadamState
from normopt.transforms import ScheduledState as ScheduledState
from normopt.transforms import TraceOnTangentState as TraceOnTangentState
from normopt.transforms import add_decay as add_decay
from normopt.transforms import average_gradients as average_gradients
from normopt.transforms import bound_relative_step as bound_relative_step
from normopt.transforms import brake_radial as brake_radial
from normopt.transforms import cautious as cautious
from normopt.transforms import center_blocks as center_blocks
from normopt.transforms import clip_blocks as clip_blocks
from normopt.transforms import compensate_rounding as compensate_rounding
from normopt.transforms import decay_weights as decay_weights
from normopt.transforms import decouple_length as decouple_length
from normopt.transforms import keep_norm as keep_norm
from normopt.transforms import normalize_blocks as normalize_blocks
from normopt.transforms import observe as observe
from normopt.transforms import orthogonalize as orthogonalize
from normopt.transforms import project_if_invariant as project_if_invariant
from normopt.transforms import project_tangent as project_tangent
from normopt.transforms import retract_to_sphere as retract_to_sphere
from normopt.transforms import retract_to_stiefel as retract_to_stiefel
from normopt.transforms import scale_by_block_adam as scale_by_block_adam
from normopt.transforms import scale_by_block_rms as scale_by_block_rms
from normopt.transforms import scale_by_block_size as scale_by_block_size
from normopt.transforms import scale_by_nadam as scale_by_nadam
from normopt.transforms import scale_by_param_norm as scale_by_param_norm
from normopt.transforms import scale_by_path as scale_by_path
from normopt.transforms import steepest as steepest
from normopt.transforms import trace_on_tangent as trace_on_tangent

try:
    __version__ = _metadata.version("normopt")
except _metadata.PackageNotFoundError:  # a folder of sources that is not installed
    __version__ = "0+unknown"

# What is imported above, but for the modules that it comes from.
__all__ = sorted(  # pyright: ignore[reportUnsupportedDunderAll]
    name
    for name, value in globals().items()
    if not name.startswith("_") and not isinstance(value, _ModuleType)
)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
