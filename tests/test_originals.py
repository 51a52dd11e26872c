"""The recorded runs of what came after 2020 are followed, each by its `meta` alone."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

import normopt
from tests.originals import NotFollowed, rebuilt
from tests.originals_of_matrices import triples
from tests.trajectories import FOLDER, deviation, read

SYSTEMS = {
    "F_rotational": 8,
    "G_hyperball": 12,
    "H_muon": 9,
    "I_scion": 5,
    "J_brake_relative": 6,
    "K_cautious": 9,
    "L_ngpt": 3,
    "N_oblique_stiefel": 5,
    "O_muown": 3,
    "P_modula": 3,
}
# One of each system's kinds; what they compile is what takes the time.
QUICK = {
    "rvadamw_defaults",
    "adamh_raw_conv",
    "brake_sgd_partial",
    "cadamp",
    "ngpt_wd",
    "oblique_sgd_dim1_wd_offmanifold",
    "kellerjordan_wd",
    "dion_normuon",
    "scion_groups_init",
    "muown",
    "dualize_project",
}
PATHS = [path for system in SYSTEMS for path in sorted((FOLDER / system).glob("*.npz"))]


def test_all_recorded_runs_are_here():
    found = {s: sum(p.parent.name == s for p in PATHS) for s in SYSTEMS}
    assert found == SYSTEMS and {path.stem for path in PATHS} >= QUICK


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(
            path,
            id=f"{path.parent.name[0]}-{path.stem}",
            marks=[]
            if path.stem in QUICK
            else pytest.mark.slow("others show the kind"),
        )
        for path in PATHS
    ],
)
def test_follows_the_original(path):
    miss, allowed = deviation(path)
    assert miss <= allowed


def test_a_run_that_nothing_follows_says_so():
    meta = {"system": "H_muon", "class": "AdaptiveMuon"}
    with pytest.raises(NotFollowed, match="nothing here follows AdaptiveMuon"):
        rebuilt(meta)


def of_other_leaves(case, leaves, **kwargs):
    """The `meta` of a recorded run, for other leaves, with other hyper-parameters."""
    (path,) = FOLDER.glob(f"*/{case}.npz")
    with np.load(path) as stored:
        meta = json.loads(str(stored["meta"]))
    return {**meta, "leaves": leaves, "kwargs": {**meta["kwargs"], **kwargs}}


def step_of(meta, params, grads):
    optimizer = rebuilt(meta)
    return optimizer.update(grads, optimizer.init(params), params)[0]


@pytest.mark.parametrize("decay, turned", [(0.0, 0.0), (3.0, (2 * 1.5) ** 0.5)])
def test_a_rotational_run_turns_by_its_decay_be_that_nothing_or_much(decay, turned):
    meta = of_other_leaves(
        "rvsgd_momentum",
        {"dense": [1, 2]},
        lr=0.5,
        weight_decay=decay,
        momentum=0.0,
        rotational=True,
        zero_mean=False,
    )
    params, grads = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, -1.0]])
    update = step_of({**meta, "per_leaf": {}}, {"dense": params}, {"dense": grads})
    new = params + update["dense"]
    np.testing.assert_allclose(new[0, 1] / new[0, 0], turned, atol=1e-5)


def test_a_set_of_coefficients_repeats_its_last_but_begins_anew_in_levanter():
    sets = {"polar_express": [[3.0, 0.0, 0.0], [2.0, 0.0, 0.0]]}
    for kind, last in (("MuonHyperball", 2.0), ("MuonHConfig.build / ...", 3.0)):
        meta = {"system": "G_hyperball", "class": kind, "ns_coefficients": sets}
        assert triples(meta, "polar_express", 3)[-1][0] == last


@pytest.mark.slow("names of the files are plain")
def test_names_of_leaves_are_taken_as_they_are():
    leaves = {"w[0].a": [2], "w[0]xa": [2]}
    meta = of_other_leaves("clion", leaves, lr=1.0, weight_decay=0.0)
    meta["per_leaf"] = {"w[0].a": {"weight_decay": 0.5}}
    ones = {leaf: jnp.ones(2) for leaf in leaves}
    update = step_of(meta, ones, {leaf: jnp.zeros(2) for leaf in leaves})
    found = {leaf: u.tolist() for leaf, u in update.items()}
    assert found == {"w[0].a": [-0.5, -0.5], "w[0]xa": [0.0, 0.0]}


def test_without_momentum_there_is_nothing_to_be_cautious_of():
    meta = of_other_leaves(
        "csgdw_nesterov", {"w": [2]}, lr=1.0, momentum=0.0, nesterov=False
    )
    update = step_of(meta, {"w": jnp.zeros(2)}, {"w": jnp.array([0.0, 4.0])})
    assert update["w"].tolist() == [0.0, -4.0]


@pytest.mark.parametrize(
    ("case", "shape", "moves"),
    [
        ("oblique_sgd_dim0", [1, 3], False),
        pytest.param("adamh_raw_conv", [3], False, marks=pytest.mark.slow("the same")),
        pytest.param("muown", [3, 1], True, marks=pytest.mark.slow("compiles Muon")),
    ],
)
def test_blocks_of_one_element_turn_nowhere_as_in_the_originals(case, shape, moves):
    meta = of_other_leaves(case, {"w": shape}, weight_decay=0.0)
    if "groups" in meta:
        meta["groups"] = {"adamh": ["w"]}
    ones = {"w": jnp.ones(shape)}
    update = step_of(meta, ones, ones)["w"]
    # Muown's length has Adam's step, its rate long: an element is all length.
    rate = meta["kwargs"]["lr"] if moves else 0.0
    np.testing.assert_allclose(update, -rate * jnp.ones(shape), rtol=1e-5)


@pytest.mark.slow("another group beside the one that the files have")
@pytest.mark.parametrize("case", ["dion_muon_reference", "dion_normuon"])
def test_dion_s_other_leaves_are_adamw_s(case):
    meta = of_other_leaves(
        case, {"w": [2, 2], "b": [2]}, lr=0.5, weight_decay=0.0, betas=[0.9, 0.95]
    )
    meta["groups"] = {"matrices": ["w"], "adamw": ["b"]}
    ones = {"w": jnp.eye(2), "b": jnp.ones(2)}
    np.testing.assert_allclose(step_of(meta, ones, ones)["b"], -0.5, rtol=1e-5)


@pytest.mark.slow("starts of runs, which the runs follow, too")
@pytest.mark.parametrize("case", ["rvadamw_defaults", "rvlion", "wrapper_adamw"])
def test_weights_are_centered_as_the_constructor_does(case):
    with np.load(FOLDER / "F_rotational" / f"{case}.npz") as stored:
        kernels = [stored[f"param0/{leaf}"] for leaf in ("conv", "dense")]
    start = read(FOLDER / "F_rotational" / f"{case}.npz").params
    for given, leaf in zip(kernels, ("conv", "dense"), strict=True):
        np.testing.assert_allclose(
            normopt.centered(given, (0,)), start[leaf], rtol=2e-5, atol=1e-6
        )


@pytest.mark.slow("starts of runs, which the runs follow, too")
def test_weights_are_put_on_the_sphere_as_before_the_first_step():
    path = FOLDER / "L_ngpt" / "ngpt_adamw.npz"
    recording = read(path)
    with np.load(path) as stored:
        given = {leaf: stored[f"param0/{leaf}"] for leaf in recording.params}
    along = recording.meta["normalize_axis"]
    axes = {f"^{leaf}$": (1 - axis,) for leaf, axis in along.items()}
    for leaf, w in normopt.on_sphere(given, axes).items():
        np.testing.assert_allclose(w, recording.params[leaf], rtol=1e-6)
