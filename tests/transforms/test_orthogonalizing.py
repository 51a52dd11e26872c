"""`orthogonalize` and `retract_to_stiefel`: polar factors, on any axes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from optax import contrib

import normopt
from normopt.orthogonal import COEFFICIENTS, triples_of
from normopt.spreading import over_devices

PAIR = ((0,), (1,))


def applied(link, x):
    return link.update(x, link.init(x), x)[0]


def with_values(values, shape=(8, 5), seed=0):
    """A matrix of these singular values, and its polar factor."""
    keys = jax.random.split(jax.random.key(seed))
    u, _ = jnp.linalg.qr(jax.random.normal(keys[0], (shape[0], len(values))))
    v, _ = jnp.linalg.qr(jax.random.normal(keys[1], (shape[1], len(values))))
    return u * jnp.asarray(values) @ v.T, u @ v.T


def test_the_exact_polar_factor_where_the_values_are_in_range():
    x, exact = with_values([1.0, 0.7, 0.4, 0.2, 0.1])
    # The last triple of this set has the fixed point 1 and converges to it.
    link = normopt.orthogonalize(PAIR, steps=16, coefficients="polar_express", eps=0.0)
    np.testing.assert_allclose(applied(link, x), exact, atol=2e-5)


@pytest.mark.parametrize("name", COEFFICIENTS)
@pytest.mark.parametrize("shape", [(8, 5), (5, 8)])
def test_singular_values_come_near_one_and_never_far_above(name, shape):
    x, _ = with_values([1.0, 0.5, 0.1, 1e-2, 1e-4], shape)
    values = jnp.linalg.svd(applied(normopt.orthogonalize(PAIR, coefficients=name), x))
    assert bool((values[1] <= 1.21).all()) and bool((values[1][:3] > 0.6).all())


def test_rotations_from_either_side_go_through():
    x, _ = with_values([3.0, 1.0, 0.5, 0.2, 0.1])
    left, _ = jnp.linalg.qr(jax.random.normal(jax.random.key(2), (8, 8)))
    right, _ = jnp.linalg.qr(jax.random.normal(jax.random.key(3), (5, 5)))
    link = normopt.orthogonalize(PAIR)
    np.testing.assert_allclose(
        applied(link, left @ x @ right), left @ applied(link, x) @ right, atol=1e-5
    )


def test_a_stack_is_its_layers_and_axes_may_stand_anywhere():
    stack = jax.random.normal(jax.random.key(0), (3, 4, 6))
    one = applied(normopt.orthogonalize(((1,), (2,))), stack)
    for layer, own in zip(stack, one, strict=True):
        alone = applied(normopt.orthogonalize(PAIR), layer)
        np.testing.assert_allclose(own, alone, atol=1e-5)
    moved = jnp.moveaxis(stack, 0, 1)
    np.testing.assert_allclose(
        applied(normopt.orthogonalize(((0,), (2,))), moved),
        jnp.moveaxis(one, 0, 1),
        atol=1e-5,
    )


@pytest.mark.skipif(
    not hasattr(contrib, "MuonDimensionNumbers"), reason="came with optax 0.2.6"
)
def test_it_is_what_optax_does_at_its_settings():
    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        "dense": jax.random.normal(keys[0], (6, 4)),
        "conv": jax.random.normal(keys[1], (2, 3, 2, 5)),
        "stack": jax.random.normal(keys[2], (3, 4, 6)),
    }
    dims = {
        "dense": contrib.MuonDimensionNumbers(0, 1),
        "conv": contrib.MuonDimensionNumbers((0, 1, 2), 3),
        "stack": contrib.MuonDimensionNumbers(1, 2),
    }
    theirs = contrib.scale_by_muon(
        beta=0.0, nesterov=False, weight_dimension_numbers=dims
    )
    ours = normopt.orthogonalize(lambda params: dims, coefficients="simple", eps=1e-8)
    for name, update in applied(theirs, params).items():
        np.testing.assert_allclose(applied(ours, params)[name], update, atol=1e-5)


def test_zero_stays_zero_and_any_unit_gives_the_same():
    link = normopt.orthogonalize(PAIR, eps=0.0)
    assert not applied(link, jnp.zeros((3, 4))).any()
    x, _ = with_values([3.0, 1.0, 0.5, 0.2, 0.1])
    for unit in (2.0**-100, 2.0**100):
        np.testing.assert_array_equal(applied(link, unit * x), applied(link, x))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "complex64"])
def test_it_keeps_the_dtype_of_the_leaf(dtype):
    x = jax.random.normal(jax.random.key(0), (6, 4), "float32").astype(dtype)
    x = x * (1 + 1j) if dtype == "complex64" else x
    y = applied(normopt.orthogonalize(PAIR), x)
    assert y.dtype == x.dtype
    values = jnp.linalg.svd(y.astype("complex64"), compute_uv=False)
    assert 0.6 < values.min() and values.max() < 1.21
    low = applied(normopt.orthogonalize(PAIR, dtype="bfloat16"), x)
    assert low.dtype == x.dtype
    assert float(jnp.abs(low - y).max()) < 0.05


def test_sets_repeat_their_last_triple_or_begin_again():
    five, eight = COEFFICIENTS["quintic"][0], COEFFICIENTS["polar_express"][0]
    assert triples_of(7, "quintic") == (*five, *five[:2])
    assert triples_of(10, "polar_express") == (*eight, eight[-1], eight[-1])
    assert triples_of(3, (1.5, -0.5, 0.0)) == ((1.5, -0.5, 0.0),) * 3
    given = [[3.0, -3.0, 1.0], [1.5, -0.5, 0.0]]
    assert triples_of(3, given) == ((3, -3, 1), (1.5, -0.5, 0), (1.5, -0.5, 0))


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"matrices": 3}, TypeError, "`matrices` must be"),
        ({"matrices": ((0,), ())}, ValueError, "an input and an output axis at least"),
        ({"matrices": ((0,), (0,))}, ValueError, "names an axis twice"),
        ({"matrices": {"a": (1, "x")}}, TypeError, "tuple of integer axes"),
        ({"coefficients": "sextic"}, ValueError, "one of simple, quintic"),
        ({"coefficients": [(1, 2)]}, TypeError, "triples"),
        ({"coefficients": (1.0, 2.0, float("nan"))}, ValueError, "`coefficients`"),
        ({"steps": 0}, ValueError, "`steps` must be at least 1"),
        ({"eps": -1.0}, ValueError, "`eps`"),
        ({"dtype": "int32"}, TypeError, "`dtype`"),
        ({"spread": 8}, TypeError, "such as 'data', .* got spread=8"),
        ({"spread": ("x", 1)}, TypeError, "got spread=\\('x', 1\\)"),
        ({"spread": ()}, TypeError, "got spread=\\(\\)"),
        ({"spread": P("x")}, TypeError, "the name of an axis of the mesh"),
        ({"spread": ("x", "x")}, ValueError, "`spread` names an axis twice"),
    ],
)
def test_what_makes_no_sense_is_refused_when_built(options, error, told):
    with pytest.raises(error, match=told):
        normopt.orthogonalize(**{"matrices": PAIR, **options})


@pytest.mark.parametrize(
    ("link", "build"),
    [
        ("orthogonalize", lambda axis: normopt.muon(0.1, spread=axis)),
        ("orthogonalize", lambda axis: normopt.normuon(0.1, spread=axis)),
        ("steepest", lambda axis: normopt.scion(0.1, norms="spectral", spread=axis)),
        (
            "retract_to_stiefel",
            lambda axis: normopt.retract_to_stiefel(optax.sgd(0.1), PAIR, spread=axis),
        ),
    ],
    ids=["muon", "normuon", "scion", "retract_to_stiefel"],
)
def test_an_axis_that_the_mesh_lacks_is_named_at_init(link, build):
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    params = {"kernel": jax.device_put(jnp.ones((3, 4)), NamedSharding(mesh, P()))}
    told = f"^`{link}`.* mesh of 'kernel', 'data', got spread='model'"
    with pytest.raises(ValueError, match=told):
        build("model").init(params)
    state = build("data").init(params)
    with pytest.raises(ValueError, match=told):
        build("model").update(params, state, params)


def test_spread_steps_are_those_of_the_leaves_wherever_their_axes_stand():
    """On one device; several are in tests/multidevice."""
    mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    keys = jax.random.split(jax.random.key(0))
    leaves = [jax.random.normal(key, (4, 3, 2, 5)) for key in keys]
    leaves = jax.device_put(leaves, NamedSharding(mesh, P()))

    def step(seen, option):
        u, _ = seen
        return u * option[0] + jnp.sum(u**2)

    inputs = [((u, None), (2.0 + i,)) for i, u in enumerate(leaves)]
    found = jax.jit(lambda inputs: over_devices(step, inputs, (1, 3), ("x",)))(inputs)
    for factor, u, one in zip((2.0, 3.0), leaves, found, strict=True):
        sums = jnp.sum(u**2, axis=(0, 2), keepdims=True)
        np.testing.assert_allclose(one, factor * u + sums, rtol=1e-5)


def test_a_missing_axis_is_named_at_init():
    params = {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)}
    normopt.orthogonalize(PAIR).init(params)
    with pytest.raises(ValueError, match="'bias' of shape"):
        normopt.orthogonalize({"bias": PAIR}).init(params)


def test_retracted_matrices_stay_orthogonal():
    params = {"kernel": jax.random.normal(jax.random.key(0), (6, 3)), "b": jnp.ones(3)}
    tx = normopt.retract_to_stiefel(
        optax.adam(0.05),
        {"kernel": PAIR},
        scale={"kernel": 2.0},
        steps=12,
        coefficients="polar_express",
    )
    state = tx.init(params)
    for _ in range(5):
        updates, state = tx.update(params, state, params)
        params = optax.apply_updates(params, updates)
    gram = params["kernel"].T @ params["kernel"]
    np.testing.assert_allclose(gram, 4 * jnp.eye(3), atol=1e-3)
    assert float(jnp.abs(params["b"] - 0.75).max()) < 1e-2
