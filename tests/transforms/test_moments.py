import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import normopt

KEYS = jax.random.split(jax.random.key(0), 20)
SHAPE = (3, 4, 5)


def follow(link, params, grads, state=None):
    """The directions of some steps; params move against them by 0.1."""
    state = link.init(params) if state is None else state
    directions = []
    for g in grads:
        direction, state = link.update(g, state, params)
        params = jax.tree.map(lambda w, d: w - 0.1 * d, params, direction)
        directions.append(direction)
    return directions, state, params


def normal(key, scale=1.0):
    return scale * jax.random.normal(key, SHAPE)


@pytest.mark.parametrize("tangent", [False, True])
def test_without_blocks_it_is_adam(tangent):
    link = normopt.scale_by_block_adam(0.8, 0.99, 1e-4, tangent=tangent)
    reference = optax.scale_by_adam(0.8, 0.99, 1e-4)
    grads = [normal(key) for key in KEYS[1:8]]
    ours, _, _ = follow(link, normal(KEYS[0]), grads)
    theirs, _, _ = follow(reference, normal(KEYS[0]), grads)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)


def test_nesterov_looks_one_step_of_momentum_ahead():
    b1, b2 = 0.8, 0.99
    link = normopt.scale_by_block_adam(b1, b2, 1e-4, nesterov=True)
    grads = [normal(key) for key in KEYS[1:5]]
    directions, _, _ = follow(link, normal(KEYS[0]), grads)
    m = v = 0.0
    for t, (g, direction) in enumerate(zip(grads, directions, strict=True), 1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        ahead = (b1 * m + (1 - b1) * g) / (1 - b1**t)
        expected = ahead / (jnp.sqrt(v / (1 - b2**t)) + 1e-4)
        np.testing.assert_allclose(direction, expected, rtol=1e-4)


def test_amsgrad_without_blocks_corrects_the_largest_moment_after():
    link = normopt.scale_by_block_adam(0.0, 0.5, 0.0, amsgrad=True)
    grads = [jnp.array([4.0]), jnp.array([2.0]), jnp.array([0.5])]
    directions, state, _ = follow(link, jnp.ones(1), grads)
    # v is 8, 6, 3.125 and the largest is 8; each is corrected by 1 - 0.5^t.
    expected = [g[0] / np.sqrt(8 / (1 - 0.5**t)) for t, g in enumerate(grads, 1)]
    np.testing.assert_allclose(jnp.concatenate(directions), expected, rtol=1e-6)
    assert float(state.nu_max.elements[0]) == 8.0


def test_amsgrad_on_the_sphere_keeps_the_largest_in_the_unit_of_the_sphere():
    link = normopt.scale_by_block_adam(0.0, 0.5, 0.0, (), tangent=True, amsgrad=True)
    params = jnp.array([3.0, 4.0])
    state = link.init(params)
    _, state = link.update(jnp.array([4.0, 0.0]), state, params)
    # v = 8 at |w|^2 = 25; at twice the length it counts as 2.
    direction, state = link.update(jnp.array([1.0, 0.0]), state, 2 * params)
    np.testing.assert_allclose(state.nu_max.blocks["@"], 2, rtol=1e-6)
    np.testing.assert_allclose(state.length["@"], 10, rtol=1e-6)
    np.testing.assert_allclose(direction, [1 / np.sqrt(2 / 0.75), 0.0], rtol=1e-6)


def test_eps_hat_stands_at_the_uncorrected_root():
    eps, b1, b2 = 0.3, 0.9, 0.99
    link = normopt.scale_by_block_adam(b1, b2, eps, eps_hat=True)
    g = jnp.array([2.0])
    (direction,), _, _ = follow(link, jnp.ones(1), [g])
    m, v = (1 - b1) * 2.0, (1 - b2) * 4.0
    expected = np.sqrt(1 - b2) / (1 - b1) * m / (np.sqrt(v) + eps)
    np.testing.assert_allclose(direction, [expected], rtol=1e-5)


def test_a_block_has_the_sum_of_its_squares():
    link = normopt.scale_by_block_adam(0.0, 0.0, 0.5, (0,))
    g = normal(KEYS[0])
    (direction,), state, _ = follow(link, g, [g])
    lengths = jnp.sqrt(jnp.sum(g**2, axis=(1, 2), keepdims=True))
    np.testing.assert_allclose(direction, g / (lengths + 0.5), rtol=1e-5)
    assert state.nu.blocks["@0"].shape == (3,)


def test_the_moment_is_projected_at_the_weights_of_the_next_step():
    link = normopt.scale_by_block_adam(channel_axes=(-1,), tangent=True)
    w1, w2, g = (normal(key) for key in KEYS[:3])
    _, state = link.update(g, link.init(w1), w1)
    zero = jnp.zeros_like(g)
    _, moved = link.update(zero, state, w2)
    radial = jnp.sum(state.mu * w2, (0, 1)) / jnp.sum(w2**2, (0, 1))
    np.testing.assert_allclose(moved.mu, 0.9 * (state.mu - radial * w2), rtol=1e-4)
    assert jnp.abs(jnp.sum(moved.mu * w2, (0, 1))).max() < 1e-6


@pytest.mark.parametrize("factor", [0.01, 3.0, 100.0])
def test_the_second_moment_is_one_of_the_sphere(factor):
    """Weights of another length, gradients to match: the direction stays."""
    link = normopt.scale_by_block_adam(eps=0.0, channel_axes=(-1,), tangent=True)
    w, g1, g2 = (normal(key) for key in KEYS[:3])
    _, state = link.update(g1, link.init(w), w)
    same, _ = link.update(g2, state, w)
    longer, _ = link.update(
        g2 / factor, state._replace(mu=state.mu / factor), factor * w
    )
    np.testing.assert_allclose(longer, same, rtol=1e-5, atol=1e-6)
    plain = normopt.scale_by_block_adam(eps=0.0, channel_axes=(-1,))
    _, state = plain.update(g1, plain.init(w))
    same, _ = plain.update(g2, state)
    longer, _ = plain.update(g2 / factor, state._replace(mu=state.mu / factor))
    assert not np.allclose(longer, same, rtol=1e-2, atol=0)


def test_blocks_of_one_element_are_elements():
    link = normopt.scale_by_block_adam(channel_axes=(-1,), tangent=True)
    params = {"bias": jnp.ones(4), "row": jnp.ones((1, 4)), "kernel": jnp.ones((2, 4))}
    state = link.init(params)
    assert set(state.nu.blocks) == set(state.length) == {"kernel@1"}
    assert isinstance(state.nu.elements["kernel"], optax.MaskedNode)
    grads = jax.tree.map(lambda w: w * jnp.arange(1.0, 5.0), params)
    updates, _ = link.update(grads, state, params)
    for name in ("bias", "row"):
        np.testing.assert_allclose(updates[name], jnp.ones_like(params[name]), 1e-4)


@pytest.mark.parametrize("size", [1e-15, 1e-7, 1e7, 1e15])
@pytest.mark.parametrize("length", [1e-15, 1.0, 1e15])
def test_exact_from_1e_15_to_1e15(size, length):
    """Both sizes at once, which a product of squares could not hold."""
    link = normopt.scale_by_block_adam(eps=0.0, channel_axes=(-1,), tangent=True)
    w, grads = normal(KEYS[0]), [normal(key) for key in KEYS[1:4]]
    expected, got = [], []
    for scale, width, out in ((1.0, 1.0, expected), (size, length, got)):
        state = link.init(w)
        for g in grads:
            direction, state = link.update(scale * g, state, width * w)
            out.append(direction)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tangent", [False, True])
@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("size", [1e-30, 1e30])
@pytest.mark.parametrize("length", [0.0, 1e-30, 1e30])
def test_finite_from_1e_30_to_1e30(size, length, tangent, amsgrad):
    link = normopt.scale_by_block_adam(
        channel_axes=(-1,), tangent=tangent, amsgrad=amsgrad
    )
    w = length * normal(KEYS[0])
    state = link.init(w)
    for key in KEYS[1:4]:
        direction, state = link.update(normal(key, size), state, w)
        assert jnp.isfinite(direction).all()
        for leaf in jax.tree.leaves(state):
            assert jnp.isfinite(leaf).all()


def test_a_second_moment_does_not_stick_at_infinity():
    link = normopt.scale_by_block_adam(b2=0.5, channel_axes=(-1,))
    _, state = link.update(normal(KEYS[0], 1e30), link.init(normal(KEYS[0])))
    calm, update = normal(KEYS[1]), jax.jit(link.update)
    for _ in range(200):
        _, state = update(calm, state)
    np.testing.assert_allclose(state.nu.blocks["@2"], jnp.sum(calm**2, (0, 1)), 1e-4)


@pytest.mark.parametrize("tangent", [False, True])
def test_zero_blocks_and_their_derivatives_are_finite(tangent):
    link = normopt.scale_by_block_adam(eps=0.0, channel_axes=(-1,), tangent=tangent)
    w = normal(KEYS[0]).at[..., 0].set(0.0)
    g = normal(KEYS[1]).at[..., 1].set(0.0)
    state = link.init(w)

    def total(g, w):
        updates, _ = link.update(g, state, w)
        return jnp.sum(updates * jnp.arange(5.0))

    updates, _ = link.update(g, state, w)
    assert jnp.isfinite(updates).all() and not updates[..., 1].any()
    for derivative in jax.grad(total, (0, 1))(g, w):
        assert jnp.isfinite(derivative).all()
    # What comes to such a block meets a moment there.
    _, state = link.update(g, state, w)
    _, change = jax.jvp(functools.partial(total, g), (w,), (normal(KEYS[2], 100.0),))
    assert jnp.isfinite(change)


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize(
    "eager", [False, pytest.param(True, marks=pytest.mark.slow("hundreds of programs"))]
)
def test_a_block_without_length_begins_anew_at_each_step(eager, amsgrad):
    """Eager as well, where XLA does not turn a product with a mask into a choice."""
    with jax.disable_jit(eager):
        check_that_lost_blocks_begin_anew(amsgrad)


def check_that_lost_blocks_begin_anew(amsgrad):
    b1, b2 = 0.8, 0.99
    link = normopt.scale_by_block_adam(
        b1, b2, 0.0, channel_axes=(), tangent=True, amsgrad=amsgrad
    )
    w, lost = normal(KEYS[0]), jnp.zeros(SHAPE)
    # Of a size that would still be seen, had it not been forgotten.
    _, state, _ = follow(link, w, [normal(key, 10.0) for key in KEYS[1:4]])
    # A number of the block that was lost, too, is not carried on.
    state = state._replace(nu=jax.tree.map(lambda nu: nu * jnp.nan, state.nu))
    for t, key in ((4, KEYS[4]), (5, KEYS[5])):
        g = normal(key)
        direction, state = link.update(g, state, lost)
        length = (1 - b1) / (1 - b1**t)
        expected = length * g / jnp.linalg.norm(g)
        np.testing.assert_allclose(direction, expected, rtol=1e-5, atol=1e-7)

    # Where it has a length again, the last of them is its past.
    m, v = (1 - b1) * g, (1 - b2**5) * jnp.sum(g * g)
    m = m - jnp.sum(m * w) / jnp.sum(w * w) * w
    g = normal(KEYS[6])
    m, v_new = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * jnp.sum(g * g)
    v = jnp.maximum(v, v_new) if amsgrad else v_new
    direction, _ = link.update(g, state, w)
    expected = m / (1 - b1**6) / jnp.sqrt(v / (1 - b2**6))
    np.testing.assert_allclose(direction, expected, rtol=1e-5, atol=1e-7)


def test_low_precision_keeps_its_second_moment():
    """In bfloat16, 0.999 v would round to v: it could never decay."""
    params = {
        "kernel": jnp.ones((4, 4), jnp.bfloat16),
        "bias": jnp.ones(4, jnp.bfloat16),
    }
    link = normopt.scale_by_block_adam(channel_axes={"kernel": (-1,)}, tangent=True)
    state = link.init(params)
    grads = jax.tree.map(lambda w: 8 * w, params)
    _, state = link.update(grads, state, params)
    before = state.nu
    for _ in range(3):
        zero = jax.tree.map(jnp.zeros_like, params)
        updates, state = link.update(zero, state, params)
    assert all(v.dtype == jnp.float32 for v in jax.tree.leaves(state.nu))
    left = {
        name: new / old
        for name, new, old in (
            ("kernel", state.nu.blocks["kernel@1"], before.blocks["kernel@1"]),
            ("bias", state.nu.elements["bias"], before.elements["bias"]),
        )
    }
    for ratio in left.values():
        np.testing.assert_allclose(ratio, 0.999**3, rtol=1e-6)
    assert all(u.dtype == jnp.bfloat16 for u in jax.tree.leaves(updates))
    assert all(m.dtype == jnp.bfloat16 for m in jax.tree.leaves(state.mu))


def test_mu_dtype_is_that_of_the_first_moment_of_real_leaves():
    params = {"real": jnp.ones(3), "complex": jnp.ones(3, jnp.complex64)}
    link = normopt.scale_by_block_adam(mu_dtype="bfloat16", channel_axes=())
    _, state = link.update(params, link.init(params))
    assert state.mu["real"].dtype == jnp.bfloat16
    assert state.mu["complex"].dtype == jnp.complex64
    assert state.nu.blocks["complex@"].dtype == jnp.float32


def test_two_leaves_of_one_path_are_refused():
    params = {"a/b": jnp.ones(3), "a": {"b": jnp.ones(3)}}
    link = normopt.scale_by_block_adam(channel_axes=())
    with pytest.raises(ValueError, match="two parameters have the path 'a/b'"):
        link.init(params)
    normopt.scale_by_block_adam().init(params)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"b1": 1.0}, ValueError, "`b1` must be at least 0 and below 1, got b1=1"),
        ({"b2": -0.1}, ValueError, "`b2` must be at least 0 and below 1"),
        ({"eps": -1e-8}, ValueError, "`eps` must be at least 0"),
        ({"eps": "small"}, TypeError, "`eps` must be one number"),
        ({"channel_axes": 0.5}, TypeError, "`channel_axes` must be None or a tuple"),
        ({"mu_dtype": "int8"}, TypeError, "`mu_dtype` must be None or a floating"),
        ({"mu_dtype": "nothing"}, TypeError, "`mu_dtype` must be None or a floating"),
        ({"mu_dtype": "float8_e4m3fn"}, TypeError, "or a floating.*float8_e4m3fn"),
    ],
)
def test_bad_options_are_refused_when_built(options, error, message):
    with pytest.raises(error, match=message):
        normopt.scale_by_block_adam(**options)


def test_tangent_moments_need_params():
    link = normopt.scale_by_block_adam(channel_axes=(), tangent=True)
    with pytest.raises(ValueError, match="`scale_by_block_adam` needs the parameters"):
        link.update(jnp.ones(2), link.init(jnp.ones(2)))


def test_a_state_of_other_params_is_refused():
    link = normopt.scale_by_block_adam(channel_axes=())
    state = link.init({"w": jnp.ones(3)})
    with pytest.raises(ValueError, match="made for other params .* 'v'"):
        link.update({"v": jnp.ones(3)}, state)
    with pytest.raises(ValueError, match="made for other params .* 'w'"):
        link.update({}, state)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("tangent", [False, True])
def test_a_plain_b1_of_zero_keeps_no_moment(tangent, nesterov):
    options = {"tangent": tangent, "nesterov": nesterov}
    params = {"kernel": normal(KEYS[0]), "bias": jnp.ones(3)}
    axes = {"kernel": (-1,)}
    link = normopt.scale_by_block_adam(0, 0.9, 1e-8, axes, **options)
    # One that may change keeps the moment, and is the same at zero.
    other = normopt.scale_by_block_adam(jnp.zeros([]), 0.9, 1e-8, axes, **options)
    state, its_state = link.init(params), other.init(params)
    assert state.mu is None and its_state.mu["kernel"].shape == SHAPE
    for factor in (1.0, -2.0):
        grads = jax.tree.map(lambda w, f=factor: f * w + 0.1, params)
        updates, state = link.update(grads, state, params)
        expected, its_state = other.update(grads, its_state, params)
        for leaf, u in updates.items():
            np.testing.assert_allclose(u, expected[leaf], rtol=1e-6)
    with pytest.raises(ValueError, match="without `b1`, and has no 'mu'"):
        other.update(params, state, params)
    tx = normopt.adamg(0.1, b1=0.0, channel_axes=axes)
    assert all(leaf.shape != SHAPE for leaf in jax.tree.leaves(tx.init(params)))
