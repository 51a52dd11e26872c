"""Problems of an established collection, and how soon an optimizer solves them.

They are those of CUTEst in the form of `sif2jax`. Each is a function of a few numbers
with a point to start from, here one vector. In double precision, as the collection is
meant.
"""

import importlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.optimize
from jax.flatten_util import ravel_pytree

import normopt

MOST_VARIABLES, MOST_PROBLEMS = 50, 30
# Of the way from the start to the least value: near enough to count as solved.
TOLERANCES = (1e-1, 1e-3, 1e-5)
WHOLE = {"x": ()}  # the vector is one block
UNSOLVED = 10.0  # times all steps: what a problem counts that is not solved (PAR10)

Make = Callable[[Any], optax.GradientTransformation]

# Muon is for matrices, of which there are none.
OPTIMIZERS: Mapping[str, Make] = {
    "sgd": optax.sgd,
    "momentum": lambda rate: optax.sgd(rate, momentum=0.9),
    "normalized momentum": lambda rate: normopt.normalized(
        optax.sgd(rate, momentum=0.9)
    ),
    "adam": optax.adam,
    "adamw": optax.adamw,
    "normalized adam": lambda rate: normopt.normalized(optax.adam(rate)),
    "novograd": normopt.novograd,
    "adams": lambda rate: normopt.adams(rate, channel_axes=WHOLE),
    "adamsrt": lambda rate: normopt.adamsrt(rate, channel_axes=WHOLE),
    "adamp": lambda rate: normopt.adamp(rate, channel_axes=WHOLE),
    "hyperball": lambda rate: normopt.hyperball(optax.adam(rate), rate, WHOLE),
    "rotational": lambda rate: normopt.rotational(
        optax.adam(rate), rate, WHOLE, center=False
    ),
}


class Problem(NamedTuple):
    """A function to make small.

    Attributes:
        name: in the collection.
        objective: of a vector.
        start: (variables,), float64.
    """

    name: str
    objective: Callable[[jax.Array], jax.Array]
    start: np.ndarray


def load() -> list[Problem]:
    """Return the first problems by name that have no constraints and few variables.

    Raises:
        ValueError: `sif2jax` is not installed.
    """
    collection = _collection()
    unconstrained = collection.unconstrained_minimisation_problems
    with jax.enable_x64(True):
        return list(_few({one.name: one for one in unconstrained}))


def _collection() -> Any:
    # Importing it switches all of JAX to double precision.
    before = jax.config.values["jax_enable_x64"]
    try:
        return importlib.import_module("sif2jax")
    except ImportError as error:
        raise ValueError(
            f"the problems need sif2jax ({error}): pip install '.[sif]'"
        ) from error
    finally:
        jax.config.update("jax_enable_x64", before)


def _few(by_name: Mapping[str, Any]) -> Iterator[Problem]:
    found = 0
    for name, one in sorted(by_name.items()):
        if found == MOST_PROBLEMS:
            return
        start, unravel = ravel_pytree(one.y0)
        if start.size > MOST_VARIABLES:
            continue
        found += 1

        def objective(x: jax.Array, one: Any = one, unravel: Any = unravel) -> Any:
            return one.objective(unravel(x), one.args)

        yield Problem(name, objective, np.asarray(start, float))


def race(
    problem: Problem, makes: Mapping[str, Make], rates: Sequence[float], steps: int
) -> dict[str, Any]:
    """Run each optimizer at each rate, and count the steps until it is near enough.

    What is near is as in Moré and Wild, "Benchmarking Derivative-Free Optimization
    Algorithms", 2009, equation 2.2: f <= least + tolerance (f at the start - least).
    The least value is that which any run finds, or BFGS from the same start.

    Args:
        problem: the function.
        makes: from a rate to the optimizer, by name.
        rates: tried of each.
        steps: of each run.

    Returns:
        The number of variables, the value at the start and the least one, who found
        that; the evaluations that BFGS takes after the one at the start, a number for
        each tolerance; and for each optimizer and tolerance the steps it takes at each
        rate, a line of them; None and `-` where it does not come so near.
    """
    with jax.enable_x64(True):
        least = {
            name: np.asarray(least_so_far(problem, make, rates, steps))
            for name, make in makes.items()
        }
        start = float(problem.objective(jnp.asarray(problem.start)))
        seen = _seen_by_bfgs(problem)
    found = {"BFGS": float(seen.min())}
    found |= {name: float(values.min()) for name, values in least.items()}
    finder = min(found, key=found.__getitem__)
    lowest = found[finder]
    goals = [lowest + tolerance * (start - lowest) for tolerance in TOLERANCES]
    return {
        "variables": len(problem.start),
        "start": start,
        "least": lowest,
        "found_by": finder,
        "bfgs": [_first(seen, goal) for goal in goals],
        "steps": {
            name: [_in_line([_first(run, goal) for run in values]) for goal in goals]
            for name, values in least.items()
        },
    }


def least_so_far(
    problem: Problem, make: Make, rates: Sequence[float], steps: int
) -> jax.Array:
    """Return the least value that a run has seen after each step, rates x (1 + steps).

    Values that are no numbers do not count.
    """

    def value_of(params: Any) -> jax.Array:
        return problem.objective(params["x"])

    def run(rate: jax.Array) -> jax.Array:
        optimizer = make(rate)

        def step(carry: Any, _: None) -> tuple[Any, jax.Array]:
            params, state, least = carry
            value, gradients = jax.value_and_grad(value_of)(params)
            least = jnp.minimum(least, jnp.where(jnp.isfinite(value), value, jnp.inf))
            updates, state = optimizer.update(gradients, state, params)
            return (optax.apply_updates(params, updates), state, least), least

        params = {"x": jnp.asarray(problem.start)}
        carry = params, optimizer.init(params), jnp.asarray(jnp.inf)
        return jax.lax.scan(step, carry, length=steps + 1)[1]

    return jax.jit(jax.vmap(run))(jnp.asarray(rates))


def _seen_by_bfgs(problem: Problem) -> np.ndarray:
    """Return the least value of BFGS after each evaluation, (evaluations,)."""
    both, seen = jax.jit(jax.value_and_grad(problem.objective)), []

    def of(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = both(jnp.asarray(x))
        seen.append(float(value) if jnp.isfinite(value) else math.inf)
        return seen[-1], np.nan_to_num(gradient)

    options = {"gtol": 1e-10, "maxiter": 5000}
    with np.errstate(all="ignore"):
        start, method = problem.start, "BFGS"
        scipy.optimize.minimize(of, start, jac=True, method=method, options=options)
    return np.minimum.accumulate(seen)


def _first(run: np.ndarray, goal: float) -> int | None:
    near = run <= goal
    return int(near.argmax()) if near.any() else None


def _in_line(steps: Sequence[int | None]) -> str:
    return " ".join("-" if step is None else str(step) for step in steps)


def read_line(steps: str) -> np.ndarray:
    """Return the steps that a line has, infinity for `-`."""
    return np.array([math.inf if one == "-" else float(one) for one in steps.split()])


def best_of_rates(steps: np.ndarray) -> np.ndarray:
    """Return the fewest steps of each problem, (problems,), infinity where unsolved.

    Args:
        steps: problems x rates, infinity where unsolved.
    """
    return steps.min(axis=1)


def at_one_rate(steps: np.ndarray, budget: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps of each problem at the rate that is best for all others.

    Best is the least mean logarithm of steps, of which an unsolved problem counts ten
    times the budget.

    Args:
        steps: problems x rates, infinity where unsolved.
        budget: steps of a run.

    Returns:
        The steps, (problems,), and which rate it was of each.
    """
    cost = np.log(np.minimum(steps, UNSOLVED * budget))
    others = cost.sum(axis=0) - cost
    chosen = others.argmin(axis=1)
    return steps[np.arange(len(steps)), chosen], chosen


def profile(times: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Return the shares of problems that each solves within factors of the fastest.

    Dolan and Moré, "Benchmarking Optimization Software with Performance Profiles",
    2002, section 2.

    Args:
        times: optimizers x problems, infinity where unsolved.
        factors: at least 1.

    Returns:
        Optimizers x factors, of all problems, those that none solves as well.
    """
    within = times[:, :, None] <= times.min(axis=0)[:, None] * factors
    return (within & np.isfinite(times)[:, :, None]).mean(axis=1)
