"""How soon problems are solved, and which are raced over."""

import importlib.util
import sys
import textwrap
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.papers.transformers import performance_profile, racing

INF = np.inf


@pytest.fixture(scope="module", autouse=True)
def _optimizations():
    """None, for so small runs take longer to compile than to run."""


def test_a_run_is_as_near_as_it_has_ever_been():
    square = racing.Problem("square", lambda x: jnp.sum(x**2), np.array([1.0]))
    rates = [0.25, 100.0]
    found = racing.race(square, {"sgd": optax.sgd}, rates, 6)
    # At a rate of r it is (1 - 2 r)^2 of it that a step leaves; BFGS finds 0.
    assert (found["variables"], found["start"]) == (1, 1.0)
    assert found["found_by"] == "BFGS" and found["least"] == pytest.approx(0, abs=1e-9)
    assert found["steps"]["sgd"] == ["2 -", "5 -", "- -"]
    assert racing.read_line("2 -").tolist() == [2.0, INF]
    assert None not in found["bfgs"]
    with jax.enable_x64(True):
        least = racing.least_so_far(square, optax.sgd, rates, 2)
    np.testing.assert_allclose(least, [[1, 1 / 4, 1 / 16], [1, 1, 1]], rtol=1e-12)


def test_values_that_are_no_numbers_do_not_count():
    cliff = racing.Problem("cliff", lambda x: jnp.log(x[0]), np.array([1.0]))
    with jax.enable_x64(True):
        least = racing.least_so_far(cliff, optax.sgd, [2.0], 2)
    # log 1, then log -1.
    assert np.asarray(least).tolist() == [[0.0, 0.0, 0.0]]


def test_one_rate_is_chosen_by_the_other_problems():
    steps = np.array([[1.0, 9.0], [4.0, 5.0], [INF, 6.0]])
    found, chosen = racing.at_one_rate(steps, budget=10)
    # Alone the third problem rules the first rate out, which it is not asked itself.
    assert chosen.tolist() == [1, 1, 0] and found.tolist() == [9.0, 5.0, INF]
    np.testing.assert_array_equal(racing.best_of_rates(steps), [1.0, 4.0, 6.0])


def test_a_profile_is_of_all_problems():
    times = np.array([[2.0, 9.0, INF, INF], [4.0, 3.0, 7.0, INF]])
    shares = racing.profile(times, np.array([1.0, 2.0, 3.0]))
    # What nobody solves counts as well, and nobody is fastest there.
    np.testing.assert_allclose(shares, [[0.25, 0.25, 0.5], [0.5, 0.75, 0.75]])


def test_the_first_by_name_are_taken_that_have_few_variables():
    def one(size):
        return SimpleNamespace(y0=jnp.ones(size), args=2.0, objective=lambda y, a: a)

    names = [f"P{number:02d}" for number in range(40)]
    large = {"P01", "P05"}
    most = racing.MOST_VARIABLES
    given = {name: one(most + (name in large)) for name in reversed(names)}
    found = list(racing._few(given))
    expected = [name for name in names if name not in large][: racing.MOST_PROBLEMS]
    assert [problem.name for problem in found] == expected
    assert found[0].objective(found[0].start) == 2.0


def test_evaluations_of_bfgs_are_told_with_that_at_the_start():
    problems = {str(k): {"bfgs": [0, 0, k]} for k in (2, 3, 9, None)}
    words = performance_profile._of_bfgs({"problems": problems})
    assert words == "3 of 4,\nhalf of them within 4 evaluations"


def test_ties_are_counted_and_told():
    steps = (
        {"a": ["5 3"] * 3, "b": ["3 -"] * 3},
        {"a": ["- 2"] * 3, "b": ["4 -"] * 3},
    )
    problems = {
        str(k): {"bfgs": [None] * 3, "steps": one} for k, one in enumerate(steps)
    }
    shape = {"steps": 9, "exponents": [0.0, 1.0], "tolerances": [1e-1, 1e-3, 1e-5]}
    rows = performance_profile.table({**shape, "problems": problems}).rows
    # On the first problem both need 3 steps.
    assert [row[2] for row in rows] == ["2 (1)", "1 (0)"]


def test_what_is_not_installed_is_named_with_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sif2jax", None)
    words = r"^the problems need sif2jax .*pip install '\.\[sif\]'$"
    with pytest.raises(ValueError, match=words):
        racing.load()
    with pytest.raises(SystemExit, match=r"^error: the problems need sif2jax"):
        performance_profile.main(["--smoke", "--out", "absent"])


def test_the_collection_leaves_the_precision_alone(monkeypatch, tmp_path):
    module = """
        import jax
        jax.config.update("jax_enable_x64", True)
        unconstrained_minimisation_problems = ()
    """
    (tmp_path / "sif2jax.py").write_text(textwrap.dedent(module))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "sif2jax", raising=False)
    before = jax.config.jax_enable_x64
    try:
        assert racing.load() == []
        assert jax.config.jax_enable_x64 == before
    finally:
        jax.config.update("jax_enable_x64", before)
        del sys.modules["sif2jax"]


@pytest.mark.slow("imports the collection, which takes most of a minute")
@pytest.mark.skipif(
    importlib.util.find_spec("sif2jax") is None,
    reason="sif2jax is not installed: pip install '.[sif]'",
)
@pytest.mark.filterwarnings("default")
def test_the_collection_is_read():
    found = racing.load()
    assert len(found) == racing.MOST_PROBLEMS and found[0].name == "AKIVA"
    with jax.enable_x64(True):
        for problem in found[:3]:
            assert np.isfinite(problem.objective(jnp.asarray(problem.start)))
