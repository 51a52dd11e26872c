"""The recorded runs of what came after 2020 are followed, each by its `meta` alone."""

import numpy as np
import pytest

import normopt
from tests.originals import NotFollowed, rebuilt
from tests.trajectories import FOLDER, deviation, read

SYSTEMS = {
    "F_rotational": 8,
    "G_hyperball": 12,
    "H_muon": 8,
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
