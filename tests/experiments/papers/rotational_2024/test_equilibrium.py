"""What is measured of blocks is what its names say, and is judged as it was fixed."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import normopt
from experiments.papers.rotational_2024 import equilibrium, noise, readings, watching
from experiments.papers.rotational_2024.arms import ARMS, TRAINED


def layer(*columns):
    """A convolution of four elements an output channel, beside another leaf."""
    kernel = jnp.asarray(columns, float).T.reshape(2, 1, 2, -1)
    return {"conv1": {"kernel": kernel}, "norm": {"scale": jnp.ones(2)}}


def test_an_optimizer_that_is_watched_steps_as_before():
    params, gradients = layer([3, 0, 0, 4], [0, 2, 0, 0]), layer([0, 5, 0, 0], [6] * 4)
    inner = optax.sgd(1.0)
    watched = watching.watch(inner, (-1,))
    expected, _ = inner.update(gradients, inner.init(params))
    state = watched.init(params)
    for _ in range(2):
        updates, state = watched.update(gradients, state, params)
        np.testing.assert_array_equal(
            updates["conv1"]["kernel"], expected["conv1"]["kernel"]
        )
    (path,) = state.length
    assert path == "conv1/kernel"
    # Twice the means over two channels of four elements.
    assert float(state.length[path]) == pytest.approx(5**2 + 2**2)
    turned = np.arccos((-6 * 0 - 4 * 2) / 2 / np.linalg.norm([6, 4, 6, 6]))
    assert float(state.angle[path]) == pytest.approx((np.pi / 4) ** 2 + turned**2)
    per_element = ((5 * 5) ** 2 + (2 * 12) ** 2) / 4
    assert float(state.gradient[path]) == pytest.approx(per_element)


def test_the_last_half_of_a_run_is_held_against_what_its_gradients_lead_to():
    config = ARMS["SGD, L2"].build(0.1, 0.002, (-1,))
    small, large = (
        normopt.equilibrium(config, size=size, gradient=gradient)
        for size, gradient in ((9, 0.5), (50, 2.0))
    )
    settled = {
        "length": np.array([small.length, 1.5 * large.length]) ** 2,
        "angle": np.array([small.angle, 4.0 * large.angle]) ** 2,
        "gradient": np.array([0.5, 2.0]) ** 2,
    }
    before = {name: 9 * squares for name, squares in settled.items()}
    found = watching.compare(config, [before, before, settled, settled], [9, 50])
    # Geometric means over the two layers.
    assert found["course"] == pytest.approx([6, 6, 2, 2])
    network = {"seeds": [found, found]}
    assert readings.ratios(network, "angle") == pytest.approx([2, 2])
    assert readings.ratios(network, "length") == pytest.approx([1.5**0.5] * 2)
    assert readings.spread(network) == pytest.approx([np.log(4) / 2] * 2)
    assert readings.course(network) == pytest.approx([6, 6, 2, 2])


def test_blocks_that_nothing_moves_keep_the_length_they_begin_with():
    still = {"name": "sgd", "learning_rate": 0.0}
    found = noise.follow(still, 3.0, 8, 2, 5)
    assert found["length"].shape == found["angle"].shape == (5, 2)
    np.testing.assert_allclose(found["length"], 9.0, rtol=1e-5)
    np.testing.assert_allclose(found["angle"], 0.0, atol=1e-9)


def test_a_rate_changes_the_length_alone_where_the_decay_goes_with_it():
    for name, arm in ARMS.items():
        one, ten = (
            normopt.equilibrium(
                arm.build(arm.noise.rate * k, arm.noise.decay / k**arm.power, (-1,)),
                size=128,
            )
            for k in (1, 10)
        )
        assert ten.angle == pytest.approx(one.angle), name
        assert ten.length > 3 * one.length


def stored(off, ratio):
    """Results of three seeds that are off by so much."""
    angles = {"predicted_angle": [0.1, 0.2], "predicted_length": [1.0, 2.0]}
    arm = angles | {
        "angle": [[0.1] * 3, [0.2 * (1 + off + k / 1000) for k in range(3)]],
        "length": [[1 - off - k / 1000 for k in range(3)], [2.0] * 3],
    }
    seeds = [
        angles
        | {
            "angle": [0.1 * (ratio + k / 1000), 0.2 * ratio],
            "length": [1.0 * (ratio + k / 1000), 2.0 * ratio],
        }
        for k in range(3)
    ]
    forms = {"corrected": {"length": [[1.0] * 3, [1 + off, 1.0, 1 + off]]}}
    return {
        "noise": dict.fromkeys(ARMS, arm),
        "schedules": {"forms": forms},
        "networks": dict.fromkeys(TRAINED, {"seeds": seeds}),
    }


@pytest.mark.parametrize(
    ("off", "ratio", "verdicts"),
    [
        (0.02, 1.05, ["reproduced"] * 4),
        (0.08, 1.3, ["not reproduced", "inconclusive"] + ["not reproduced"] * 2),
        (0.02, 1.15, ["reproduced"] * 2 + ["not reproduced", "reproduced"]),
    ],
)
def test_margins_are_those_that_were_fixed(off, ratio, verdicts):
    claims = equilibrium.EXHIBIT.claims
    found = [str(claim.judge(stored(off, ratio)).verdict) for claim in claims[:4]]
    assert found == verdicts


def test_layers_turn_alike_where_their_angles_differ_less():
    results, claim = stored(0.0, 1.0), equilibrium.EXHIBIT.claims[-1]
    alike = [
        {**seed, "angle": [0.1 + k / 1000, 0.1]}
        for k, seed in enumerate(results["networks"]["AdamW"]["seeds"])
    ]
    assert str(claim.judge(results).verdict) == "not reproduced"
    results["networks"]["AdamW"] = {"seeds": alike}
    assert str(claim.judge(results).verdict) == "reproduced"


@pytest.mark.parametrize(
    ("option", "given"), [("steps", 41), ("noise-steps", 110), ("seeds", 1)]
)
def test_numbers_that_fill_no_stretches_are_refused(option, given, tmp_path):
    with pytest.raises(SystemExit, match=rf"^error: `{option.replace('-', '_')}` must"):
        equilibrium.main([f"--{option}", str(given), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
