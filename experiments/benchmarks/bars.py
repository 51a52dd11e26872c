"""The bars that this library sets itself: what takes how long, and what a TPU does."""

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import Any

from experiments.benchmarks import (
    compile_time,
    loop_time,
    muon_time,
    observe_time,
    ratio_figures,
    step_time,
    two_times,
)
from experiments.benchmarks.gpu import gpu_compile
from experiments.benchmarks.tpu import tpu_compile, tpu_tables, tpu_transformer
from experiments.report.claims import (
    NO_VALUE,
    OF_A_BAR,
    Chapter,
    Claim,
    Exhibit,
    Finding,
    Picture,
    Stored,
)

OURS = tuple(name for name in tpu_compile.OPTIMIZERS if name != tpu_compile.BASELINE)
OF_TRANSFORMER = tuple(
    name for name in tpu_transformer.OPTIMIZERS if name != tpu_compile.BASELINE
)
# Of a chip and a step: a number for each head or layer's kernel, a few times over.
MOST_EXCHANGED = 4096


def _keeps(name: str, bar: float, stored: Stored) -> Finding:
    row = next((row for row in stored["rows"] if row["optimizer"] == name), None)
    if row is None:
        return Finding(None, f"{name}: not run")
    return Finding(row["ratio"] <= bar, _times(row))


def _keeps_up(stored: Stored) -> Finding:
    return Finding(
        stored["ratio"] <= loop_time.BAR,
        f"{_times(stored)}; medians of the times: {stored['loop_ms']:.1f} ms in the "
        f"training loop, {stored['bare_ms']:.1f} ms bare",
    )


def _times(measured: Mapping[str, Any]) -> str:
    low, high = measured["quartiles"]
    ratio = measured["ratio"]
    return f"{ratio:.2f} times, half of the rounds from {low:.2f} to {high:.2f}"


def _bar_claims(module: ModuleType, what: str) -> tuple[Claim, ...]:
    return tuple(
        Claim(
            f"{name} takes at most {case.bar:g} times {case.baseline}'s {what}.",
            functools.partial(_keeps, name, case.bar),
            published=f"{NO_VALUE}; the bar is {case.bar:g}",
        )
        for name, case in module.CASES.items()
        if case.bar is not None
    )


def _traffic(name: str, stored: Stored) -> Finding:
    """Compare the bytes a parameter of main memory, in every layout."""
    rows = _compiled(stored, tpu_compile.WAYS, (name, tpu_compile.BASELINE))
    if rows is None:
        return Finding(None, f"{name} or {tpu_compile.BASELINE}: not run everywhere")
    found = {
        where: row["main_memory_bytes"] / row["parameters_of_chip"]
        for where, row in rows.items()
    }
    pairs = [
        (ours, found[*where, tpu_compile.BASELINE])
        for (*where, program), ours in found.items()
        if program == name
    ]
    most, least = max(ours for ours, _ in pairs), min(theirs for _, theirs in pairs)
    return Finding(
        all(ours <= theirs for ours, theirs in pairs),
        f"at most {most:.1f} bytes a parameter, {tpu_compile.BASELINE} {least:.1f} and "
        f"more, in {len(pairs)} layouts",
    )


def _alone(names: tuple[str, ...], way: str, stored: Stored, most: int = 0) -> Finding:
    """Check that the step of an optimizer waits for no other chip, or for little."""
    rows = _compiled(stored, (way,), names)
    if rows is None:
        return Finding(None, f"{', '.join(names)}: not run everywhere")
    sent = [sum(f["bytes"] for f in row["collectives"]) for row in rows.values()]
    if most:
        words = f"at most {max(sent)} bytes in one of {len(rows)} programs"
        return Finding(max(sent) <= most, words)
    return Finding(sum(sent) == 0, f"{sum(sent)} bytes in {len(rows)} programs")


def _without_conditionals(stored: Stored) -> Finding:
    """Check that no step makes a GPU wait for its host."""
    rows = {row["optimizer"]: row["conditionals"] for row in stored["rows"]}
    if missing := step_time.CASES.keys() - rows:
        return Finding(None, f"{', '.join(sorted(missing))}: not run")
    return Finding(
        not any(rows.values()), f"{sum(rows.values())} in {len(rows)} programs"
    )


def _compiled(
    stored: Stored, ways: Iterable[str], names: Iterable[str]
) -> dict[tuple[str, str, str], tpu_compile.Row] | None:
    """Return the rows of optimizers on all topologies, or None if one is missing."""
    rows = {
        (row["topology"], row["way"], row["program"]): row for row in stored["rows"]
    }
    wanted = list(itertools.product(tpu_compile.IMAGES_PER_CHIP, ways, names))
    # A run of some topologies proves nothing of the others.
    return {key: rows[key] for key in wanted} if rows.keys() >= set(wanted) else None


def _two_claims(
    cases: Mapping[str, two_times.Case], sentence: Callable[[str, str, str], str]
) -> tuple[Claim, ...]:
    """Make a claim of each bar of a step and of compiling.

    Args:
        cases: which have them.
        sentence: from the name of a case, its bar and what takes the time.
    """
    spelled = {"step": "step", "compile": "tracing and compiling"}
    return tuple(
        Claim(
            sentence(name, f"{bar:g}", spelled[of]),
            functools.partial(_keeps, f"{name}, {of}", bar),
            published=f"{NO_VALUE}; the bar is {bar:g}",
        )
        for name, case in cases.items()
        for of in two_times.OF
        if (bar := getattr(case, of)) is not None
    )


def _muon_sentence(name: str, bar: str, what: str) -> str:
    return f"{name} takes at most {bar} times {muon_time.BASELINE}'s {what}."


def _observe_sentence(name: str, bar: str, what: str) -> str:
    return f"Observed with {name}, AdamW takes at most {bar} times its own {what}."


def _ratios(name: str, of: str) -> Picture:
    shows = f"Ratios of the time of {of} to that of optax's or another one, with bars."
    return Picture(name, shows, ratio_figures.draw)


def _rounds_extent(stored: Stored) -> str:
    return (
        f"n = {stored['rounds']} rounds; a time is the median over them, and a ratio "
        "the median of the rounds' own ratios"
    )


def _gpu_extent(stored: Stored) -> str:
    versions = stored["provenance"]["versions"]
    return (
        f"compiled for an H100 with {gpu_compile.PLUGIN} "
        f"{versions[gpu_compile.PLUGIN]}; nothing is run or random"
    )


def _tpu_extent(stored: Stored) -> str:
    topologies = dict.fromkeys(row["topology"] for row in stored["rows"])
    return (
        f"compiled for {' and '.join(topologies)} with libtpu "
        f"{stored['provenance']['versions']['libtpu']}; nothing is run or random"
    )


CHAPTER = Chapter(
    title="The library's own bars",
    source="Set for normopt itself; no paper has them.",
    claimed="bars that this library sets itself",
    verdicts=OF_A_BAR,
    exhibits={
        "step_time": Exhibit(
            claims=_bar_claims(step_time, "step"),
            extent=_rounds_extent,
            tables=(step_time.table,),
            pictures=(_ratios("step_time", "a step"),),
        ),
        "compile_time": Exhibit(
            claims=_bar_claims(compile_time, "tracing and compiling"),
            extent=_rounds_extent,
            tables=(compile_time.table,),
            pictures=(_ratios("compile_time", "tracing and compiling"),),
        ),
        "muon_time": Exhibit(
            claims=_two_claims(muon_time.CASES, _muon_sentence),
            extent=_rounds_extent,
            tables=(muon_time.table,),
            pictures=(_ratios("muon_time", "a step, or of compiling,"),),
        ),
        "observe_time": Exhibit(
            claims=_two_claims(observe_time.CASES, _observe_sentence),
            extent=_rounds_extent,
            tables=(observe_time.table,),
            pictures=(_ratios("observe_time", "a step, or of compiling,"),),
        ),
        "loop_time": Exhibit(
            claims=(
                Claim(
                    f"A step in the training loop takes at most {loop_time.BAR:g} "
                    "times the bare step.",
                    _keeps_up,
                    published=f"{NO_VALUE}; the bar is {loop_time.BAR:g}",
                ),
            ),
            extent=_rounds_extent,
        ),
        "gpu_compile": Exhibit(
            claims=(
                Claim(
                    "Compiled for a GPU, no optimizer's step has a conditional.",
                    _without_conditionals,
                    published=f"{NO_VALUE}; the bar is 0",
                ),
            ),
            extent=_gpu_extent,
            tables=(gpu_compile.table,),
        ),
        "tpu_compile": Exhibit(
            claims=(
                *(
                    Claim(
                        f"On a TPU, {name}'s step moves no more bytes to and from main "
                        f"memory than {tpu_compile.BASELINE}'s.",
                        functools.partial(_traffic, name),
                        published=f"{NO_VALUE}; the bar is {tpu_compile.BASELINE}",
                    )
                    for name in OURS
                ),
                Claim(
                    "Data-parallel, no optimizer's step exchanges anything between "
                    "chips.",
                    functools.partial(_alone, OURS, "data-parallel"),
                    published=f"{NO_VALUE}; the bar is 0",
                ),
                Claim(
                    "Under FSDP, neither adamsrt's step nor adams's exchanges anything "
                    "between chips.",
                    functools.partial(_alone, ("adamsrt", "adams"), "FSDP"),
                    published=f"{NO_VALUE}; the bar is 0",
                ),
            ),
            extent=_tpu_extent,
            tables=(tpu_tables.programs, tpu_tables.traffic, tpu_tables.exchanges),
        ),
        "tpu_transformer": Exhibit(
            claims=(
                *(
                    Claim(
                        f"On a TPU, {name}'s step of a transformer moves no more bytes "
                        f"to and from main memory than {tpu_compile.BASELINE}'s.",
                        functools.partial(_traffic, name),
                        published=f"{NO_VALUE}; the bar is {tpu_compile.BASELINE}",
                    )
                    for name in OF_TRANSFORMER
                ),
                Claim(
                    "Data-parallel, no optimizer's step of a transformer exchanges "
                    "anything between chips.",
                    functools.partial(_alone, OF_TRANSFORMER, "data-parallel"),
                    published=f"{NO_VALUE}; the bar is 0",
                ),
                Claim(
                    "Under FSDP, adamsrt's and hyperball's steps of a transformer "
                    f"exchange at most {MOST_EXCHANGED} bytes.",
                    functools.partial(
                        _alone, ("adamsrt", "hyperball"), "FSDP", most=MOST_EXCHANGED
                    ),
                    published=f"{NO_VALUE}; the bar is {MOST_EXCHANGED}",
                ),
            ),
            extent=_tpu_extent,
            tables=(tpu_tables.programs, tpu_tables.traffic, tpu_tables.exchanges),
        ),
    },
)
