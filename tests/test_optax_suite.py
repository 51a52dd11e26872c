"""Optax's own suite for its contributed optimizers, run on ours.

`optax/contrib/_common_test.py` is installed with optax. Its tables of optimizers are
consumed by decorators while its class body runs, so its source is run here in two
parts, and the tables and the look-up of a factory are replaced between them.
"""

import ast
import functools
import importlib.util
import math
import pathlib
import re
import types
from collections import Counter

import pytest

import normopt
from tests.contract_cases import CASES

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


def row(case, options, wrapper=None, wrapper_options=None):
    """A row of optax's tables."""
    return {
        "opt_name": case.name,
        "opt_kwargs": options,
        "wrapper_name": wrapper,
        "wrapper_kwargs": wrapper_options,
    }


TASKS = [(task, row(case, task.options)) for case in CASES for task in case.tasks]
WRAPPED = [
    row(case, case.mechanized, "mechanize", {"weight_decay": 0.0})
    for case in CASES
    if case.mechanized is not None
]
MAIN_ROWS = tuple(row for _, row in TASKS)
TABLES = {MAIN: MAIN_ROWS, OTHER: tuple(WRAPPED), ALL: (*MAIN_ROWS, *WRAPPED)}


def factory(name):
    found = getattr(normopt, name)
    assert found.__module__.startswith("normopt."), found
    return found


def with_exemptions(test):
    """Skips the targets that an optimizer is exempt from, with the reason."""

    @functools.wraps(test)
    def converges(self, **arguments):
        given = {column: arguments[column] for column in MAIN_ROWS[0]}
        for task, its_row in TASKS:
            if task.exempt and its_row == given:
                self.skipTest(task.exempt)
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
    # Ours that no trace may hold, as `ns_steps` is theirs.
    assert "'ns_steps'," in source, f"ns_steps is gone from {path}"
    tree = ast.parse(source.replace("'ns_steps',", "'ns_steps', 'steps',"))
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


# That they converge no other test shows.
for name, test in vars(ContribTest).items():
    if name.startswith("test") and not re.fullmatch(rf"{CONVERGENCE}\d+", name):
        pytest.mark.slow("what the contract's tests show, in optax's words")(test)


def test_as_many_tests_run_as_the_tables_imply():
    cases = [name for name in dir(ContribTest) if name.startswith("test")]
    found = Counter(re.sub(r"\d+$", "", name) for name in cases)
    assert found == COUNTS
    assert sum(COUNTS.values()) == 11 * len(TABLES[ALL]) + 5 * len(TABLES[MAIN])
