"""What the tests use that depends on the versions of jax, optax and flax.

`make test-versions` runs them on the oldest that are declared and on the newest.
"""

import flax
import jax
import jax.experimental
import optax
import orbax.checkpoint
import pytest
from flax import nnx
from packaging.version import Version

# No `or`: a setting of jax refuses to be read as true or false.
enable_x64 = (jax if hasattr(jax, "enable_x64") else jax.experimental).enable_x64
set_mesh = jax.set_mesh if hasattr(jax, "set_mesh") else jax.sharding.use_mesh
nnx_list = getattr(nnx, "List", list)

# flax 0.11 declares jax 0.6.0, but its scans call a method that came with jax 0.6.2.
FLAX_SCANS = hasattr(jax.sharding.NamedSharding, "update")

# Before that, `nnx.Optimizer` fails on a state with an `optax.MaskedNode`, that of
# `optax.masked` included, and `nnx.merge` cannot copy.
NNX_KEEPS_MASKS = Version(flax.__version__) >= Version("0.12")
needs_masks_in_nnx = pytest.mark.skipif(
    not NNX_KEEPS_MASKS, reason="nnx.Optimizer keeps optax.MaskedNode from flax 0.12 on"
)

# `optax.MultiSteps` of 0.2.5 keeps sums of gradients in the dtype of the updates.
SUMS_KEEP_DTYPE = Version(optax.__version__) > Version("0.2.5")

# With jax 0.6.0, XLA's CPU stores what it sums, however the sum is written; with 0.10
# it need not. The versions between have not been tried.
needs_sums_of_parts = pytest.mark.skipif(
    Version(jax.__version__) < Version("0.10"),
    reason="XLA's CPU stored what it sums before jax 0.10",
)

# Likewise: 0.6.0 lowers for a platform what `platform_dependent` has for others, too,
# and selects only between arrays that are placed alike.
needs_one_platform = pytest.mark.skipif(
    Version(jax.__version__) < Version("0.10"),
    reason="jax 0.6.0 lowers the branches of all platforms",
)
needs_mixed_places = pytest.mark.skipif(
    Version(jax.__version__) < Version("0.10"),
    reason="jax 0.6.0 selects only between arrays that are placed alike",
)

HAS_SHARD_MAP = hasattr(jax, "shard_map")
needs_shard_map = pytest.mark.skipif(
    not HAS_SHARD_MAP, reason="jax.shard_map came with jax 0.6.1"
)

# Before Shardy, the default from jax 0.7.0 on, XLA gathers an array on every device
# whose sharding along one of two axes changes.
HAS_SHARDY = getattr(jax.config, "jax_use_shardy_partitioner", True)

# `nnx.set_graph_mode` and `nnx.set_graph_updates`, for modules that are plain pytrees.
NNX_HAS_MODES = hasattr(nnx, "set_graph_mode") and hasattr(nnx, "set_graph_updates")

HAS_ORBAX_V1 = hasattr(orbax.checkpoint, "v1")
