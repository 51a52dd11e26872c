"""Where the arrays of a run lie: on one device, or spread over a mesh of them.

A mesh has one axis, `data`, over which each batch is split. What is not split lies
whole on every device, also on those of other processes.
"""

import dataclasses
import re
import signal
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import normopt
from experiments.data.augment import Augment
from experiments.training import processes, ranges
from experiments.training.steps import Network, TrainState

AXIS = "data"


@dataclasses.dataclass(frozen=True)
class PlacementConfig:
    """Which devices train."""

    mesh: str | None = None
    """`data=8` splits each batch over eight devices, `data` over all; left out, one
    device trains, or all of them with --distributed."""
    fsdp: bool = False
    """Split each parameter over the devices, too, and the optimizer's state with it."""
    distributed: bool = False
    """Train with other processes, which have been given the same command: one for each
    host of a pod or a cluster, which tells each its place; --runs-dir must be a folder
    that all of them see, and the first one alone writes there."""
    coordinator_address: str | None = None
    """HOST:PORT of the first process, where no cluster tells."""
    num_processes: int | None = None
    """How many processes there are, where no cluster tells."""
    process_id: int | None = None
    """Which of them this is, from 0 on, where no cluster tells."""

    def initialize(self) -> None:
        """Find the other processes, before anything else asks for a device."""
        if self.distributed:
            ranges.check(self, num_processes=1, process_id=0)
            jax.distributed.initialize(
                self.coordinator_address, self.num_processes, self.process_id
            )
            # JAX catches SIGTERM now, to tell who asks; here it ends the process.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def placement(self, dtype: Any = None) -> "Placement":
        """Return where arrays go.

        Args:
            dtype: what the layers compute in, if not in that of their kernels.

        Raises:
            ValueError: the mesh has another form, or more devices than there are; or
                an option is there without the one that it needs.
        """
        if not self.distributed:
            for name in ("coordinator_address", "num_processes", "process_id"):
                if getattr(self, name) is not None:
                    raise ValueError(f"`{name}` needs --distributed")
            if self.mesh is None:
                if self.fsdp:
                    raise ValueError("`fsdp` needs a mesh: add --mesh data")
                return Placement()
        found = re.fullmatch(rf"{AXIS}(?:=([1-9]\d*))?", self.mesh or AXIS)
        if not found:
            raise ValueError(
                f"`mesh` must be {AXIS}=N for N devices or {AXIS} for all, got "
                f"{self.mesh}"
            )
        there = jax.device_count()
        wanted = int(found[1] or there)
        if wanted > there or (processes.are_many() and wanted < there):
            which = "all of" if processes.are_many() else "at most"
            raise ValueError(f"`mesh` must take {which} {there} devices, got {wanted}")
        devices = jax.devices()[:wanted]
        mesh = jax.make_mesh(
            (wanted,), (AXIS,), axis_types=(AxisType.Auto,), devices=devices
        )
        return Placement(mesh, fsdp=self.fsdp, dtype=dtype)


class Gathering(NamedTuple):
    """A network that splits its batch, and takes parameters that are split, too."""

    network: Network
    mesh: Mesh
    dtype: Any = None  # what the layers cast kernels to; None: nothing

    def train(self, params: Any, model_state: Any, images: jax.Array):
        """Return logits and the new model state, as `Network.train` does."""
        return self.network.train(self._whole(params), model_state, self._parts(images))

    def evaluate(self, params: Any, model_state: Any, images: jax.Array) -> jax.Array:
        """Return logits, as `Network.evaluate` does."""
        images = self._parts(images)
        return self.network.evaluate(self._whole(params), model_state, images)

    def penalty(self, params: Any, model_state: Any) -> jax.Array | float:
        """Return what the model adds to the loss."""
        return self.network.penalty(params, model_state)

    def _whole(self, params: Any) -> Any:
        # What a layer casts anyway is cast first, as what travels is smaller then. The
        # scales and biases of a norm stay what they are in float32, those of a stack of
        # layers, too.
        if self.dtype is not None:
            params = jax.tree.map_with_path(self._cast, params)
        return jax.lax.with_sharding_constraint(params, whole(self.mesh))

    def _cast(self, path: Any, leaf: jax.Array) -> jax.Array:
        is_of_norm = normopt.path_of(path).endswith("norm/scale")
        return leaf if leaf.ndim < 2 or is_of_norm else leaf.astype(self.dtype)

    def _parts(self, images: jax.Array) -> jax.Array:
        return jax.lax.with_sharding_constraint(images, parts(self.mesh))


class Placement:
    """Puts arrays where they belong, and keeps them there.

    Attributes:
        devices: over how many each batch is split.
    """

    def __init__(
        self, mesh: Mesh | None = None, *, fsdp: bool = False, dtype: Any = None
    ):
        """Take the devices of a mesh; without one, the default device."""
        self._mesh, self._fsdp, self._dtype = mesh, fsdp, dtype
        self.devices = 1 if mesh is None else mesh.size

    @property
    def emulated(self) -> bool:
        """Whether several devices are one CPU, where steps must not run far ahead.

        XLA takes at most 32 programs for each and runs those of all on one pool of
        threads, as many as there are devices, or cores. Behind a slow device one thread
        waits to hand over the next program and the others wait in a collective for the
        device; no thread is left to run it, and XLA ends the process.
        """
        if self._mesh is None:
            return False
        return len(self._mesh.local_devices) > 1 and jax.default_backend() == "cpu"

    @property
    def everywhere(self) -> NamedSharding | None:
        """Whole on every device; None for the default device."""
        return None if self._mesh is None else whole(self._mesh)

    def put(self, tree: Any) -> Any:
        """Return what every process has whole, whole on every device."""
        if self._mesh is None:
            return jax.tree.map(jnp.asarray, tree)
        return jax.tree.map(lambda leaf: _put(leaf, self.everywhere), tree)

    def put_state(
        self, state: TrainState, optimizer: optax.GradientTransformation
    ) -> TrainState:
        """Return a state that every process has whole, where it belongs."""
        if self._mesh is None:
            return state
        return jax.tree.map(_put, state, self._shardings(state, optimizer))

    def keep_state(
        self, state: TrainState, optimizer: optax.GradientTransformation
    ) -> TrainState:
        """Return a state under `jax.jit` that the compiler leaves where it belongs."""
        if self._mesh is None:
            return state
        shardings = self._shardings(state, optimizer)
        return jax.lax.with_sharding_constraint(state, shardings)

    def spread(self, network: Network) -> Any:
        """Return the network for batches that are split."""
        if self._mesh is None:
            return network
        return Gathering(network, self._mesh, self._dtype)

    def split_first(self, augmentation: Augment) -> Augment:
        """Return the augmentation for batches that are split before it."""
        mesh = self._mesh
        return augmentation if mesh is None else split_before(augmentation, mesh)

    def _shardings(
        self, state: TrainState, optimizer: optax.GradientTransformation
    ) -> TrainState:
        assert self._mesh is not None
        lay = fully_sharded if self._fsdp else replicated
        params = lay(state.params, self._mesh)
        own = jax.tree.map(lambda leaf: leaf.sharding, params)
        shardings = jax.tree.map(lambda _: self.everywhere, state)
        if state.best is not None:
            shardings = shardings._replace(best=shardings.best._replace(params=own))
        return shardings._replace(
            params=own, opt_state=normopt.state_sharding(optimizer, params)
        )


def whole(mesh: Mesh) -> NamedSharding:
    """Return the sharding of what is whole on each device."""
    return NamedSharding(mesh, PartitionSpec())


def parts(mesh: Mesh) -> NamedSharding:
    """Return the sharding of a batch, which has a part on each device."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def split_before(augmentation: Augment, mesh: Mesh) -> Augment:
    """Return an augmentation whose batch is split, as is then all that follows."""
    return lambda key, images: augmentation(
        key, jax.lax.with_sharding_constraint(images, parts(mesh))
    )


def replicated(params: Any, mesh: Any) -> Any:
    """Return the shapes of parameters that are whole on each device."""
    return at(params, whole(mesh))


def fully_sharded(params: Any, mesh: Any) -> Any:
    """Return the shapes of parameters split along their longest axes.

    That is the longest that the devices divide, of equally long ones the last. Without
    one the parameter stays whole.
    """

    def place(leaf):
        axes = [axis for axis in range(leaf.ndim) if leaf.shape[axis] % mesh.size == 0]
        if not axes:
            return whole(mesh)
        longest = max(axes, key=lambda axis: (leaf.shape[axis], axis))
        return NamedSharding(mesh, PartitionSpec(*[None] * longest, AXIS))

    return at(params, jax.tree.map(place, params))


def at(tree: Any, shardings: Any) -> Any:
    """Return the shapes of a tree at the places of another one, or all at one."""
    if isinstance(shardings, NamedSharding):
        shardings = jax.tree.map(lambda _: shardings, tree)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=sharding
        ),
        tree,
        shardings,
    )


def _put(leaf: Any, sharding: Any) -> jax.Array:
    """Put what every process has whole where it belongs."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = jax.random.key_data(leaf)
        kind = jax.random.key_impl(leaf)
        return jax.random.wrap_key_data(_put(data, sharding), impl=kind)
    # From the host, and by each process for its own devices: nothing is sent. Copies,
    # because a device may else take the buffer itself, which the next step donates.
    host = jax.device_get(leaf)
    return jax.make_array_from_callback(
        host.shape, sharding, lambda index: host[index].copy()
    )
