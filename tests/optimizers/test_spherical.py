import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import normopt
from tests.trajectories import FOLDER, cases, largest_miss, load
from tests.versions import enable_x64

SYSTEM = "A_adamsrt"
OPTIMIZERS = {
    "AdamS": normopt.adams,
    "AdamSRT": normopt.adamsrt,
    "SGDMRT": normopt.sgdmrt,
    "AdamG": normopt.adamg,
}


def axes_of(meta):
    """Each leaf's channel axes, from the flags of the original."""
    default = meta["kwargs"].get("channel_wise", False)
    axes = {}
    for leaf, flags in meta["per_leaf"].items():
        channel_wise = flags.get("channel_wise", default)
        # The flag of the original's AdamG means its opposite.
        if meta["class"] == "AdamG":
            channel_wise = not channel_wise
        dims = flags.get("channel_dims", [0] if channel_wise else None)
        axes[f"^{leaf}$"] = None if dims is None else tuple(dims)
    return axes


def rebuilt(meta):
    kwargs = dict(meta["kwargs"])
    kwargs.pop("channel_wise", None)
    rate = kwargs.pop("lr", 1e-3)
    if "betas" in kwargs:
        kwargs["b1"], kwargs["b2"] = kwargs.pop("betas")
    return OPTIMIZERS[meta["class"]](rate, **kwargs, channel_axes=axes_of(meta))


def not_followed(meta):
    """AdamG's leaves of one dimension: the original makes each element +-1."""
    if meta["class"] != "AdamG":
        return []
    return [
        leaf
        for leaf, shape in meta["leaves"].items()
        if len(shape) == 1 and axes_of(meta)[f"^{leaf}$"] is not None
    ]


def test_all_recorded_cases_are_here():
    assert len(cases(SYSTEM)) == 15


# One of them has no blocks at all.
@pytest.mark.filterwarnings("ignore::normopt.NoBlocksWarning")
@pytest.mark.parametrize("case", cases(SYSTEM))
def test_follows_the_original(case):
    recording = load(SYSTEM, case)
    meta = recording.meta
    miss = largest_miss(recording, lambda: rebuilt(meta), not_followed(meta))
    # The original also adds its eps to the denominators of its transport.
    assert miss <= 1e-6 + 2e-8


def test_the_moments_at_the_next_weights_are_the_originals():
    """The original transports moments at the end of a step, ours before the next."""
    recording = load(SYSTEM, "adamsrt_cw_wd0")
    with np.load(FOLDER / SYSTEM / "adamsrt_cw_wd0.npz") as stored:
        first = stored["state/exp_avg/conv"]
        second = stored["state/exp_avg_sq/conv"][:, :, 0, 0, 0]
    for t, (params, state) in enumerate(steps_of(recording)):
        ours = tangent(moment_of(state)["conv"], params["conv"])
        np.testing.assert_allclose(ours, first[t], atol=1e-7 * np.abs(first[t]).max())
        (adam,) = (one for one in state if hasattr(one, "nu"))
        # The state keeps v at the length before the step.
        lengths = jnp.sqrt(jnp.sum(params["conv"] ** 2, (1, 2, 3)))
        ours = adam.nu.blocks["conv@0"] * (adam.length["conv@0"] / lengths) ** 2
        # The original has its eps of 1e-8 beside the squared lengths.
        np.testing.assert_allclose(ours, second[t], rtol=1e-6)
    assert t == 39


def test_the_momentum_at_the_next_weights_is_what_the_original_transports():
    """Its files hold no momentum_buffer, so its formula is repeated here."""
    recording = load(SYSTEM, "sgdmrt_cw_wd0")
    buffer, before = 0.0, recording.params["conv"].astype(float)
    for t, (params, state) in enumerate(steps_of(recording)):
        after = np.asarray(params["conv"])
        buffer = 0.9 * buffer + recording.grads["conv"][t].astype(float)
        ours = tangent(moment_of(state)["conv"], params["conv"])
        kept, turned = channel_sum(before * after), channel_sum(buffer * after)
        buffer = (buffer * kept - turned * before) / channel_sum(after**2)
        np.testing.assert_allclose(ours, buffer, atol=1e-12 * np.abs(buffer).max())
        before = after
    assert t == 39


def steps_of(recording):
    """Yields our params and state after each recorded step, in float64."""
    with enable_x64(True):
        optimizer = rebuilt(recording.meta)
        params = {k: jnp.asarray(v, float) for k, v in recording.params.items()}
        state, update = optimizer.init(params), jax.jit(optimizer.update)
        for t in range(recording.meta["steps"]):
            grads = {k: jnp.asarray(v[t], float) for k, v in recording.grads.items()}
            updates, state = update(grads, state, params)
            params = optax.apply_updates(params, updates)
            yield params, state


def moment_of(state):
    """The first moment, by the name of whichever state has one."""
    (moment,) = (getattr(s, f) for s in state for f in ("mu", "trace") if hasattr(s, f))
    return moment


def channel_sum(x):
    return x.sum(axis=(1, 2, 3), keepdims=True)


def tangent(m, w):
    return m - channel_sum(m * w) / channel_sum(w**2) * w


def normalized_network(weights, inputs):
    """Two layers, each followed by a norm over the batch, with its epsilon at 0."""
    for w in weights:
        inputs = inputs @ w
        inputs = (inputs - inputs.mean(0)) / inputs.std(0)
        inputs = jnp.tanh(inputs)
    return jnp.mean((inputs - jnp.arange(3.0)) ** 2)


def rescaled_losses(optimizer, with_rescaling, steps=15):
    """Losses of training in which every block is rescaled at random after each step."""
    keys = jax.random.split(jax.random.key(0), 5)
    weights = [jax.random.normal(keys[0], (6, 5)), jax.random.normal(keys[1], (5, 3))]
    inputs = jax.random.normal(keys[2], (16, 6))
    rates = [jnp.full(w.shape[1:], 0.05) for w in weights]
    state = optimizer.init(weights)
    losses = []
    for key in jax.random.split(keys[3], steps):
        loss, grads = jax.value_and_grad(normalized_network)(weights, inputs)
        losses.append(float(loss))
        updates, state = optimizer.update(grads, state, weights)
        weights = [w + r * u for w, r, u in zip(weights, rates, updates, strict=True)]
        if not with_rescaling:
            continue
        c = [
            jax.random.uniform(k, w.shape[1:], minval=0.3, maxval=3.0)
            for k, w in zip(jax.random.split(key), weights, strict=True)
        ]
        weights = [w * a for w, a in zip(weights, c, strict=True)]
        rates = [r * a for r, a in zip(rates, c, strict=True)]
        moment = [m / a for m, a in zip(moment_of(state), c, strict=True)]
        state = optax.tree.set(state, mu=moment)
    return np.array(losses)


@pytest.mark.parametrize(
    ("make", "is_invariant"),
    [
        (normopt.adamsrt, True),
        (normopt.adams, False),
    ],
)
def test_the_length_of_invariant_weights_means_nothing_to_adamsrt(make, is_invariant):
    with enable_x64(True):
        optimizer = make(1.0, eps=0.0, channel_axes=(-1,))
        plain, rescaled = (rescaled_losses(optimizer, flag) for flag in (False, True))
        miss = np.abs(plain - rescaled).max()
        assert plain[-1] < 0.95 * plain[0]
        assert (miss < 1e-12) if is_invariant else (miss > 0.01)


@pytest.mark.parametrize(
    ("ours", "reference"),
    [
        (normopt.adams(0.1, 0.8, 0.99, 1e-6), optax.adam(0.1, 0.8, 0.99, 1e-6)),
        (normopt.adamsrt(0.1, 0.8, 0.99, 1e-6), optax.adam(0.1, 0.8, 0.99, 1e-6)),
        (normopt.adamg(0.1, 0.8, 0.99, 1e-6), optax.adam(0.1, 0.8, 0.99, 1e-6)),
        (normopt.sgdmrt(0.1), optax.sgd(0.1)),
        (normopt.sgdmrt(0.1, 0.9), optax.sgd(0.1, 0.9)),
        (
            normopt.sgdmrt(0.1, 0.9, weight_decay=0.01),
            optax.chain(optax.add_decayed_weights(0.01), optax.sgd(0.1, 0.9)),
        ),
    ],
)
def test_without_blocks_they_are_optax_own(ours, reference):
    params = jax.random.normal(jax.random.key(0), (4, 3))
    a = b = params
    state, other = ours.init(params), reference.init(params)
    for key in jax.random.split(jax.random.key(1), 20):
        grads = jax.random.normal(key, (4, 3))
        updates, state = ours.update(grads, state, a)
        a = optax.apply_updates(a, updates)
        updates, other = reference.update(grads, other, b)
        b = optax.apply_updates(b, updates)
    np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-6)


def test_adamg_keeps_unit_length_over_ten_thousand_steps():
    optimizer = normopt.adamg(0.01, channel_axes={"kernel": (-1,)}, weight_decay=0.1)
    params = {
        "kernel": jax.random.normal(jax.random.key(0), (7, 4)),
        "bias": jnp.ones(4),
    }

    def step(carry, key):
        params, state = carry
        grads = optax.tree.random_like(key, params)
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), jnp.linalg.norm(params["kernel"], axis=0)

    _, lengths = jax.lax.scan(
        step,
        (params, optimizer.init(params)),
        jax.random.split(jax.random.key(1), 10_000),
    )
    assert jnp.abs(lengths - 1).max() <= 1e-6


def test_adamg_decays_leaves_without_blocks_alone():
    params = {"kernel": jnp.eye(3, 2), "bias": jnp.ones(2)}
    zero = jax.tree.map(jnp.zeros_like, params)
    optimizer = normopt.adamg(
        0.1, weight_decay={"kernel": 0.5, "bias": 0.5}, channel_axes={"kernel": (-1,)}
    )
    updates, _ = optimizer.update(zero, optimizer.init(params), params)
    assert not updates["kernel"].any() and (updates["bias"] < 0).all()


@pytest.mark.parametrize("make", [normopt.adams, normopt.adamsrt])
@pytest.mark.parametrize("start", [0.0, 1e-30, 1e-12])
def test_blocks_of_no_length_leave_zero_and_do_not_leap(make, start):
    """From the first step on, and also if a block is set to zero in mid-training."""
    size, rate = 50, 0.01
    optimizer = make(rate, channel_axes=(-1,))
    update = jax.jit(optimizer.update)
    params = jnp.full((size, 4), start).at[:, 2:].set(1.0)
    state = optimizer.init(params)
    for t, key in enumerate(jax.random.split(jax.random.key(0), 60)):
        if t == 30:
            params = params.at[:, 2].set(0.0)
        updates, state = update(jax.random.normal(key, params.shape), state, params)
        params = params + updates
        assert jnp.isfinite(params).all()
        assert (jnp.linalg.norm(params, axis=0) > 0.1 * rate * size**0.5).all()
        assert jnp.linalg.norm(updates, axis=0).max() <= 2 * rate * size**0.5


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("size", [1.0, 1e-4, 0.0])
def test_a_block_set_to_zero_forgets_both_moments(size, amsgrad):
    """Gradients of another size than before, or none, do not make it leap."""
    link = optax.chain(
        normopt.scale_by_block_adam(channel_axes=(-1,), tangent=True, amsgrad=amsgrad),
        normopt.scale_by_block_size((-1,)),
    )
    update = jax.jit(link.update)
    params = jax.random.normal(jax.random.key(1), (16, 2))
    state = link.init(params)
    for t, key in enumerate(jax.random.split(jax.random.key(0), 25)):
        grads = jax.random.normal(key, params.shape)
        if t >= 20:
            grads = grads.at[:, 0].multiply(size)
            params = params.at[:, 0].set(0) if t == 20 else params
        updates, state = update(grads, state, params)
        params = params - 1e-3 * updates
        length, other = jnp.linalg.norm(updates, axis=0)
        assert length <= 2 * 16**0.5 and other > 0
        assert (length > 0) == (t < 20 or size > 0)


@pytest.mark.parametrize("gradient", [1.0, 1e-15])
@pytest.mark.parametrize("weight", [1e18, 1e20, 1e25, 1e30])
def test_the_momentum_of_huge_weights_stays_that_of_their_gradients(weight, gradient):
    link = normopt.scale_by_block_adam(channel_axes=(), tangent=True)
    key = jax.random.key(2)
    params = weight * jax.random.normal(key, (12,))
    state = link.init(params)
    for t in range(5):
        grads = gradient * jax.random.normal(jax.random.fold_in(key, t), (12,))
        updates, state = link.update(grads, state, params)
        assert jnp.isfinite(updates).all() and jnp.isfinite(state.nu.blocks["@"])
        # A projection shortens; a mean of five such gradients is below three of them.
        assert jnp.abs(state.mu).max() <= 3 * gradient


@pytest.mark.parametrize(
    "optimizer",
    [
        normopt.adamg(0.01, channel_axes=()),
        normopt.adamg(0.0625, b2=0.99, eps=0.0, channel_axes=()),
        normopt.retract_to_sphere(optax.sgd(1e-3, 0.9), (), moment="trace"),
    ],
    ids=["adamg", "adamg without eps", "retracted sgd"],
)
@pytest.mark.parametrize("powers", [(30, 30, 30), (30, -30, 30), (-30, 30, 30)])
def test_the_sphere_is_not_left_for_infinity(optimizer, powers):
    params = jax.random.normal(jax.random.key(3), (12,))
    state = optimizer.init(params)
    for t, power in enumerate(powers):
        grads = 10.0**power * jax.random.normal(jax.random.key(t), (12,))
        updates, state = optimizer.update(grads, state, params)
        params = params + updates
        leaves = jax.tree.leaves((params, state))
        assert all(jnp.isfinite(leaf).all() for leaf in leaves)


@pytest.mark.parametrize("make", [normopt.adams, normopt.adamsrt])
def test_the_state_is_half_of_adams(make):
    params = {"kernel": jnp.ones((3, 3, 64, 64)), "bias": jnp.ones(64)}
    axes = {"kernel": (-1,)}
    ours, adams = (
        sum(leaf.nbytes for leaf in jax.tree.leaves(optimizer.init(params)))
        for optimizer in (make(0.1, channel_axes=axes), optax.adam(0.1))
    )
    assert ours < 0.51 * adams


@pytest.mark.parametrize("make", [*OPTIMIZERS.values()])
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"learning_rate": -0.1}, ValueError, "`learning_rate` must be at least 0"),
        ({"learning_rate": "fast"}, TypeError, "`learning_rate` must be one number"),
        ({"weight_decay": {"x": -1.0}}, ValueError, "`weight_decay` .* at 'x'"),
        ({"channel_axes": (-1.0,)}, TypeError, "`channel_axes` must be None or"),
    ],
)
def test_bad_options_are_refused_when_built(make, options, error, message):
    with pytest.raises(error, match=message):
        make(**{"learning_rate": 0.1, **options})
