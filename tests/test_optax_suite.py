"""Optax's own suite for its contributed optimizers, run on ours.

`optax/contrib/_common_test.py` is installed with optax. Its tables of optimizers are
consumed by decorators while its class body runs, so its source is run here in two
parts, and the tables and the look-up of a factory are replaced between them.
"""

import ast
import dataclasses
import functools
import importlib.util
import math
import pathlib
import re
import types
from collections import Counter
from collections.abc import Mapping
from typing import Any

import optax
import pytest

import normopt

MAIN = "_MAIN_OPTIMIZERS_UNDER_TEST"
OTHER = "_OTHER_OPTIMIZERS_UNDER_TEST"
ALL = "_ALL_OPTIMIZERS_UNDER_TEST"
CONVERGENCE = "test_optimizers"
TARGETS = (
    "_setup_parabola",
    "_setup_rosenbrock",
    "_setup_matrix_parabola",
    "_setup_mixed_tensor_target",
)


@dataclasses.dataclass(frozen=True)
class Entry:
    """A row of optax's tables, and the targets that it need not converge to."""

    name: str
    options: Mapping[str, Any]
    wrapper: str | None = None
    wrapper_options: Mapping[str, Any] | None = None
    exempt: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def row(self) -> dict[str, Any]:
        return {
            "opt_name": self.name,
            "opt_kwargs": self.options,
            "wrapper_name": self.wrapper,
            "wrapper_kwargs": self.wrapper_options,
        }


WHOLE = {"channel_axes": ()}
MOMENTUM = {"learning_rate": 1e-3, "momentum": 0.9}
OFF_THE_SPHERE = "its blocks have unit length, and no leaf of the optimum has"
# The empty pattern is found in every path. There is none in what stands in for params
# where `optax.tree.map_params` calls init.
RULED = {"channel_axes": {"": ()}}
ENTRIES = (
    Entry("adamg", {"learning_rate": 1e-2}),
    Entry(
        "adamg",
        {"learning_rate": 1e-2, **WHOLE},
        exempt=dict.fromkeys(TARGETS, OFF_THE_SPHERE),
    ),
    Entry("adamp", {"learning_rate": 1e-2}),
    Entry("adams", {"learning_rate": 1e-2, **RULED}),
    Entry("adamsrt", {"learning_rate": 1e-2, **WHOLE}),
    Entry("adamw", {"learning_rate": 1e-2}),
    Entry("clipped", {"inner": optax.sgd(**MOMENTUM), "max_norm": 1.0}),
    Entry("nadamw", {"learning_rate": 1e-2}),
    Entry("normalized", {"inner": optax.sgd(1e-3)}),
    Entry("novograd", {"learning_rate": 1e-3}),
    Entry("sgdmrt", {**MOMENTUM, **WHOLE}),
    Entry("sgdp", MOMENTUM),
    Entry("sgdw", MOMENTUM),
)

# As optax's own, in a wrapper that looks for the learning rate itself. One of each kind
# of moments: to train them all would double the time and test the wrapper.
mechanized = functools.partial(
    Entry, wrapper="mechanize", wrapper_options={"weight_decay": 0.0}
)
WRAPPED = (
    mechanized("adamsrt", {"learning_rate": 1.0, **WHOLE}),
    mechanized("clipped", {"inner": optax.sgd(1.0), "max_norm": 1.0}),
    mechanized("nadamw", {"learning_rate": 1.0}),
    mechanized("novograd", {"learning_rate": 1.0}),
    mechanized("sgdp", {"learning_rate": 1.0, "momentum": 0.9}),
)
TABLES = {
    MAIN: tuple(entry.row for entry in ENTRIES),
    OTHER: tuple(entry.row for entry in WRAPPED),
    ALL: tuple(entry.row for entry in ENTRIES + WRAPPED),
}


def factory(name):
    found = getattr(normopt, name)
    assert found.__module__.startswith("normopt."), found
    return found


def with_exemptions(test):
    """Skips the targets that an optimizer is exempt from, with the reason."""

    @functools.wraps(test)
    def converges(self, **arguments):
        target = arguments["target"].__name__
        given = {column: arguments[column] for column in ENTRIES[0].row}
        (entry,) = (entry for entry in ENTRIES + WRAPPED if entry.row == given)
        if target in entry.exempt:
            self.skipTest(entry.exempt[target])
        test(self, **arguments)

    return converges


def methods_of(suite):
    return [
        node
        for node in suite.body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test")
    ]


def how_many(test):
    """How often `@parameterized.product(TABLE, option=(...), ...)` has a test run."""
    decorators = [one for one in test.decorator_list if isinstance(one, ast.Call)]
    (product,) = (d for d in decorators if d.func.attr == "product")
    (table,) = product.args
    grids = [len(option.value.elts) for option in product.keywords]
    return len(TABLES[table.id]) * math.prod(grids)


def load():
    """Runs optax's file on our tables; its class, and how often each test is to run."""
    spec = importlib.util.find_spec("optax.contrib._common_test")
    path = pathlib.Path(spec.origin)
    source = path.read_text(encoding="utf-8")
    if "chex.variants" in source:
        pytest.skip(
            "before 0.2.7 optax runs this suite in variants of chex: more tests than "
            "its tables imply",
            allow_module_level=True,
        )
    tree = ast.parse(source)
    suites = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    assert [suite.name for suite in suites] == ["ContribTest"]
    first = tree.body.index(suites[0])
    module = types.ModuleType("optax_suite")
    run(tree.body[:first], path, module)
    for name in (*TABLES, "_get_opt_factory", "_wrap_opt", *TARGETS):
        assert hasattr(module, name), f"{name} is gone from {path}"
    theirs = [row["opt_name"] for row in getattr(module, ALL)]
    assert module._get_opt_factory(theirs[0]).__module__.startswith("optax.")
    vars(module).update(
        TABLES, _get_opt_factory=factory, with_exemptions=with_exemptions
    )
    (converging,) = (t for t in methods_of(suites[0]) if t.name == CONVERGENCE)
    converging.decorator_list.append(ast.Name("with_exemptions", ast.Load()))
    run(tree.body[first:], path, module)
    for name, table in TABLES.items():
        assert getattr(module, name) is table, f"{name} is filled again in {path}"
    assert module._get_opt_factory is factory
    counts = {test.name: how_many(test) for test in methods_of(suites[0])}
    return module.ContribTest, counts


def run(statements, path, module):
    part = ast.fix_missing_locations(ast.Module(statements, []))
    exec(compile(part, str(path), "exec"), vars(module))


ContribTest, COUNTS = load()
# A class is collected as a test of the module that it says it is from.
ContribTest.__module__ = __name__


def test_every_optimizer_is_under_test():
    assert sorted({entry.name for entry in ENTRIES}) == normopt.names()


def test_as_many_tests_run_as_the_tables_imply():
    cases = [name for name in dir(ContribTest) if name.startswith("test")]
    found = Counter(re.sub(r"\d+$", "", name) for name in cases)
    assert found == COUNTS
    assert sum(COUNTS.values()) == 11 * len(TABLES[ALL]) + 5 * len(TABLES[MAIN])


def test_only_known_targets_are_exempt():
    for entry in ENTRIES + WRAPPED:
        assert set(entry.exempt) <= set(TARGETS)
