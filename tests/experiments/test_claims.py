"""Each claim is decided by the numbers: there are some that make it hold, and fail."""

import copy
import json

import numpy as np
import pytest

from experiments import bars, compile_time, report_parts, step_time
from experiments.block_normalized_2017.network_claims import WHOLE
from experiments.claims import OF_A_BAR, Paired, is_whole, standard_error
from experiments.decoupled_decay_2019.anytime_arms import PAIRS
from experiments.decoupled_decay_2019.decay_grid import MARGIN
from experiments.novograd_2019.claims import BASELINES, MODES
from experiments.report import CHAPTERS, FOLDER
from experiments.spherical_2020 import protocol
from experiments.spherical_2020.cell_settings import IMAGES
from experiments.spherical_2020.claims import PUBLISHED
from tests.experiments.robustness_records import results

EXHIBITS = {
    name: exhibit for chapter in CHAPTERS for name, exhibit in chapter.exhibits.items()
}


# For each experiment, results with which all its claims hold, and none.


def convex():
    return [
        {
            "gaps": {f"normalized {kind}": [[100, end]] for kind in ("SGD", "Adam")},
            "learning_rates": [0.1],
        }
        for end in (0.5, 200)
    ]


def learning_rate_sensitivity():
    arrived = [[30, 20, 10], [None, 20, None]]
    return [
        {
            "learning_rates": [0.01, 0.1, 1.0],
            "methods": {
                "normalized Adam": {
                    "gap_at_end": [1e-4, 1e-3, 1e-2],
                    "arrived_after": a,
                }
            },
        }
        for a in arrived
    ]


def curves():
    """Of a network; normalized SGD is ahead of normalized Adam as well."""
    slow = {"train_loss": [3.0, 2.0], "test_accuracy": [0.1, 0.2]}
    fast = {"train_loss": [2.0, 1.0], "test_accuracy": [0.1, 0.7]}
    faster = {"train_loss": [1.5, 0.5], "test_accuracy": [0.1, 0.8]}
    good = {
        "SGD": slow,
        "normalized SGD": faster,
        "Adam": slow,
        "normalized Adam": fast,
    }
    bad = {
        "SGD": faster,
        "normalized SGD": slow,
        "Adam": faster,
        "normalized Adam": fast,
    }
    return [network(curves, curves, curves) for curves in (good, bad)]


def network(*seeds):
    """Stored curves of a whole run, those of one seed after those of another."""
    images, epochs = WHOLE["cifar10"]
    config = {"data": "cifar10", "images": images, "epochs_per_rate": epochs}
    seeds = {str(seed): {"curves": curves} for seed, curves in enumerate(seeds)}
    return {"seeds": seeds, "config": config}


def recurrent():
    """Of a recurrent network; of the normalized ones, Adam is ahead or behind."""
    methods = ("SGD", "normalized SGD", "Adam", "normalized Adam")
    ends = [(0.06, 0.04, 0.05, 0.03), (0.03, 0.04, 0.05, 0.06)]
    return [recurrent_ends(dict(zip(methods, each, strict=True))) for each in ends]


def recurrent_ends(ends, seeds=3):
    """Records whose errors and losses are lowest at these, at the lower rate."""
    curves = {
        name: {
            "exponents": [-1.0, 0.0],
            # Seeds that differ by more than the methods do.
            "errors": [[seed, 0.9] for seed in end + 0.1 * np.arange(seeds)],
            "losses": [[seed, 2.0] for seed in end * 2.0 ** np.arange(seeds)],
        }
        for name, end in ends.items()
    }
    return {"curves": curves}


def decay_grid():
    rates, decays = np.meshgrid(range(9), range(9), indexing="ij")
    shapes = {
        # A valley along the diagonal, and one that leans less and is deeper.
        True: 0.06 + MARGIN / 2 * abs(rates + decays - 8) + 1e-5 * abs(rates - 4),
        False: 0.05 + MARGIN / 2 * abs(decays - 4) + 1e-5 * abs(rates - 4),
    }
    axes = {"learning_rates": list(range(9)), "decays": list(range(9))}
    forms = {"SGD, L2": True, "SGDW": False, "Adam, L2": True, "AdamW": False}
    return [
        {
            "batch_norm": True,
            "grids": {
                name: {**axes, "errors": [shapes[coupled is right]] * 3}
                for name, coupled in forms.items()
            },
        }
        for right in (True, False)
    ]


def anytime():
    """Of one cosine and restarts, or the other way round."""
    slow, fast = ["400 300 200"] * 3, ["400 90 90"] * 3

    def stored(cosine, restarts):
        arms = {name: {"wrong": cosine} for name in PAIRS.values()}
        both = {"wrong": restarts, "wrong_on_one_cosine": cosine}
        return {"held_out": 1000, "arms": {**arms, **dict.fromkeys(PAIRS, both)}}

    return [stored(slow, fast), stored(fast, slow)]


def warm_restarts():
    good = json.loads((FOLDER / "decoupled_decay_2019/warm_restarts.json").read_text())
    bad = copy.deepcopy(good)
    for run in ("automatic", "by_hand"):
        # Still falling, but off the cosine.
        bad[run][5]["eta"] -= 0.01
    return [good, bad]


def table1():
    def stored(accuracy):
        return {
            "cells": [
                {
                    "column": column,
                    "config": {"dtype": "float32", "channel_axes": "paper"},
                    "optimizer": name,
                    "test_accuracy": [accuracy(row[column][0])] * 3,
                    "epochs": protocol.EPOCHS,
                    "images": IMAGES[column.partition("/")[0]],
                }
                for name, row in PUBLISHED.items()
                for column in protocol.COLUMNS
            ]
        }

    # Upside down, the order is the other way round.
    return [stored(lambda mean: mean / 100), stored(lambda mean: 1 - mean / 100)]


def effective_learning_rate():
    rates = {"a": 1e-3, "b": 2e-3, "c": 5e-3}

    def stored(power):
        angles = {layer: rate**power for layer, rate in rates.items()}
        records = [{"rate": rates, "angle": angles}] * 2
        return {"runs": dict.fromkeys(("adam", "adams", "adamsrt"), records)}

    return [stored(1), stored(-1)]


def memory():
    def stored(size):
        sizes = {"novograd": size, "optax.adamw": 8.0}
        rows = [
            {"optimizer": name, "float32": held, "bfloat16": held}
            for name, held in sizes.items()
        ]
        return {"rows": rows}

    return [stored(4.01), stored(6.0)]


def modes():
    def curve(best, decades):
        exponents = np.linspace(-2, 2, 9)
        errors = best + 0.01 * abs(exponents) / (decades / 2)
        # Seeds that differ, so that there is a deviation.
        seeds = [errors - 1e-3, errors, errors + 1e-3]
        return {"exponents": list(exponents), "errors": np.array(seeds)}

    good, bad = curve(0.05, 2.0), curve(0.08, 1.0)
    return [
        {"curves": {**dict.fromkeys(MODES, a), **dict.fromkeys(BASELINES, b)}}
        for a, b in ((good, bad), (bad, good))
    ]


def robustness():
    good, bad = (0.01, 4.0, 30.0), (0.03, 2.0, 10.0)
    return [results(good, bad), results(bad, good)]


def ratios(cases):
    largest = {name: case.bar for name, case in cases.items() if case.bar is not None}
    return [
        {
            "rows": [
                {"optimizer": name, "ratio": bar + more, "quartiles": [1.0, 2.0]}
                for name, bar in largest.items()
            ]
        }
        for more in (0.0, 0.01)
    ]


def loop():
    times = {"loop_ms": 11.0, "bare_ms": 10.0, "quartiles": [1.0, 1.2]}
    return [{**times, "ratio": 1.1}, {**times, "ratio": 1.11}]


def tpu_compile():
    def stored(size, collectives):
        rows = [
            {
                "topology": topology,
                "way": way,
                "program": program,
                "parameters_of_chip": 10,
                "main_memory_bytes": 280 if program == "optax.adamw" else size,
                "collectives": [] if program == "optax.adamw" else collectives,
            }
            for topology in ("v5e:2x2", "v5e:16x16")
            for way in ("data-parallel", "FSDP")
            for program in ("optax.adamw", *bars.OURS)
        ]
        return {"rows": rows}

    return [stored(280, []), stored(281, [{"bytes": 4}])]


def gpu_compile():
    def stored(conditionals):
        rows = [
            {"optimizer": name, "conditionals": conditionals}
            for name in step_time.CASES
        ]
        return {"rows": rows}

    return [stored(0), stored(1)]


GOOD_AND_BAD = {
    "block_normalized_2017.convex": convex,
    "block_normalized_2017.learning_rate_sensitivity": learning_rate_sensitivity,
    "block_normalized_2017.deep_mlp": curves,
    "block_normalized_2017.cifar_cnn": curves,
    "block_normalized_2017.recurrent": recurrent,
    "decoupled_decay_2019.decay_grid": decay_grid,
    "decoupled_decay_2019.warm_restarts": warm_restarts,
    "decoupled_decay_2019.anytime": anytime,
    "spherical_2020.table1": table1,
    "spherical_2020.effective_learning_rate": effective_learning_rate,
    "novograd_2019.memory": memory,
    "novograd_2019.modes": modes,
    "novograd_2019.robustness": robustness,
    "step_time": lambda: ratios(step_time.CASES),
    "compile_time": lambda: ratios(compile_time.CASES),
    "loop_time": loop,
    "gpu_compile": gpu_compile,
    "tpu_compile": tpu_compile,
}


@pytest.mark.parametrize("name", EXHIBITS)
def test_every_claim_can_hold_and_can_fail(name):
    good, bad = GOOD_AND_BAD[name]()
    for claim in EXHIBITS[name].claims:
        assert claim.judge(good).verdict == "reproduced", claim
        assert claim.judge(bad).verdict == "not reproduced", claim
        assert claim.judge(good).ours != claim.judge(bad).ours


def test_table_of_fewer_epochs_or_cells_decides_what_it_can():
    whole, _ = table1()
    columns = [c for c in whole["cells"] if c["column"] == "cifar10/resnet20"]
    order, values, *others = EXHIBITS["spherical_2020.table1"].claims
    short = {"cells": [{**cell, "epochs": 60} for cell in columns]}
    assert order.judge(short).verdict == "reproduced"
    assert values.judge(short).verdict == "not run"
    part = {"cells": [{**cell, "images": 500} for cell in columns]}
    assert values.judge(part).verdict == "not run"
    after = "after 60 epochs of 47,500 images, where the paper has 405 epochs of all"
    assert after in values.judge(short).ours
    assert {claim.judge(short).verdict for claim in others} == {"not run"}
    fewer = {"cells": [c for c in columns if c["optimizer"] in ("sgd", "adam")]}
    assert order.judge(fewer).verdict == values.judge(fewer).verdict == "not run"
    assert order.judge(fewer).ours.startswith("adams, adamsrt: not run; adam 9")
    assert values.judge(fewer).ours.startswith(
        "adamw, sgdmrt, adams, adamsrt: not run; sgd +0.00, adam +0.00, after 405"
    )


def test_table_needs_three_seeds_and_differences_above_their_noise():
    order, values, *_ = EXHIBITS["spherical_2020.table1"].claims
    column = {c["optimizer"]: c for c in table1()[0]["cells"][:: len(protocol.COLUMNS)]}
    assert list(column) == list(PUBLISHED)

    def judged(claim, **accuracies):
        cells = [
            {**c, "test_accuracy": accuracies.get(n, c["test_accuracy"])}
            for n, c in column.items()
        ]
        return claim.judge({"cells": cells})

    few = judged(order, adam=[0.9, 0.9])
    assert few.verdict == "not run" and few.ours.startswith("adam 90.00 ± 0.00 (2), ")
    assert few.ours.endswith("judged from 3 seeds on")
    few = judged(values, adam=[0.9, 0.9])
    assert few.verdict == "not run" and "; n = 2, judged from 3 seeds on" in few.ours
    # Standard errors of 0.058, 0.058 and none: the steps need more than 0.16 and 0.12.
    adam, adams = [0.799, 0.8, 0.801], [0.849, 0.85, 0.851]
    for adamsrt, verdict, noisy in (
        (0.88, "reproduced", False),
        (0.851, "not reproduced", True),
        (0.82, "not reproduced", False),
    ):
        found = judged(order, adam=adam, adams=adams, adamsrt=[adamsrt] * 3)
        assert found.verdict == verdict
        assert found.ours.startswith("within the noise: ") is noisy
        assert "adam 80.00 ± 0.10 (3), adams 85.00 ± 0.10 (3)" in found.ours
    assert judged(values, sgd=[0.5] * 3).verdict == "not reproduced"


def test_adamg_is_shown_and_not_judged():
    _, values, *_ = EXHIBITS["spherical_2020.table1"].claims
    cells = copy.deepcopy(table1()[0]["cells"])
    for cell in cells:
        if cell["optimizer"] == "adamg":
            cell["test_accuracy"] = [PUBLISHED["adamg"][cell["column"]][0] / 100 - 0.5]
    found = values.judge({"cells": cells})
    assert found.verdict == "reproduced"
    assert "adamg -50.00 (not judged)" in found.ours
    others = [cell for cell in cells if cell["optimizer"] != "adamg"]
    assert values.judge({"cells": others}).verdict == "reproduced"


def test_rate_is_followed_in_proportion_and_over_enough_layers():
    claim = EXHIBITS["spherical_2020.effective_learning_rate"].claims[0]

    def judged(power, layers):
        rates = {str(n): 1e-3 * 2**n for n in range(layers)}
        angles = {layer: rate**power for layer, rate in rates.items()}
        return claim.judge({"runs": {"adam": [{"rate": rates, "angle": angles}] * 5}})

    assert judged(0.85, 3).verdict == judged(1.15, 3).verdict == "reproduced"
    assert judged(0.5, 3).verdict == judged(1.5, 3).verdict == "not reproduced"
    assert "correlation 1.000, slope 0.50; n = 3 layers" in judged(0.5, 3).ours
    assert judged(1.0, 2).verdict == "not run" and "2 layers" in judged(1.0, 2).ours


def test_maps_are_compared_seed_by_seed():
    claim = EXHIBITS["decoupled_decay_2019.decay_grid"].claims[1]

    def judged(*differences):
        # The seeds differ by far more than the two forms.
        seeds = 0.1 * np.arange(len(differences))
        grids = {
            "SGD, L2": {"errors": [[[seed, 9.0]] for seed in seeds]},
            "SGDW": {"errors": [[[9.0, error]] for error in seeds + differences]},
        }
        return claim.judge({"grids": grids})

    assert judged(-0.01, -0.02, -0.01).verdict == "reproduced"
    assert judged(0.01, 0.02, 0.01).verdict == "not reproduced"
    noisy = judged(0.01, -0.02, 0.02)
    # It was run, and is not lower by as much as the claim asks.
    assert noisy.verdict == "not reproduced"
    assert noisy.ours.startswith("within the noise: ") and "3 paired" in noisy.ours
    lone = judged(-0.01)
    assert lone.verdict == "not run" and lone.ours.endswith(" lower, one seed")


def test_what_couples_is_seen_with_batch_norm_alone():
    good, _ = decay_grid()
    claim = EXHIBITS["decoupled_decay_2019.decay_grid"].claims[0]
    assert claim.if_so.startswith("with batch norm, ")
    assert claim.judge(good).ours.startswith("with batch norm: rho ")
    without = claim.judge({**good, "batch_norm": False})
    assert without.verdict == "not run"
    assert without.ours.startswith("without batch norm: rho ")


def test_claims_of_recurrent_networks_are_of_their_own_pairs():
    ends = {"SGD": 0.06, "normalized SGD": 0.04, "Adam": 0.02, "normalized Adam": 0.05}
    stored = recurrent_ends(ends)
    claims = EXHIBITS["block_normalized_2017.recurrent"].claims
    verdicts = [claim.judge(stored).verdict for claim in claims]
    assert verdicts == ["reproduced"] * 2 + ["not reproduced"] * 3
    for claim in claims:
        assert claim.judge(recurrent_ends(ends, seeds=2)).verdict == "not run"


def test_modes_are_compared_seed_by_seed_with_the_better_baseline():
    claim = EXHIBITS["novograd_2019.modes"].claims[1]

    def judged(*differences):
        # The seeds differ by far more than the two optimizers.
        seeds = 0.1 * np.arange(len(differences))
        errors = {
            MODES[0]: seeds + differences,
            BASELINES[0]: seeds + 0.01,
            BASELINES[1]: seeds,
        }
        curves = {
            name: {"errors": [[0.9, error] for error in column]}
            for name, column in errors.items()
        }
        return claim.judge({"curves": curves})

    assert judged(-0.01, -0.01, -0.02).verdict == "reproduced"
    assert judged(0.01, -0.01, 0.02).verdict == "reproduced"
    worse = judged(0.01, 0.01, 0.02)
    assert worse.verdict == "not reproduced"
    assert f"+1.33 ± 0.33 points over 3 paired seeds above {BASELINES[1]}" in worse.ours
    assert judged(0.01).verdict == "not run"


def test_a_difference_is_noise_within_two_standard_errors():
    assert standard_error([1.0, 3.0]) == pytest.approx(1.0)
    assert Paired.of([1.0, 3.0]) == pytest.approx((2.0, 1.0, 2))
    assert Paired.of([1.0, 3.0]).is_noise and not Paired.of([1.1, 3.0]).is_noise
    assert Paired.of([-1.0, -3.0]).is_noise and Paired.of([0.0, 0.0]).is_noise
    # Of one seed nothing is known.
    assert Paired.of([9.0]).is_noise


def test_a_copy_may_lack_a_few_images():
    assert is_whole(50_000, 50_000) and is_whole(49_927, 50_000)
    assert not is_whole(49_499, 50_000) and not is_whole(5_000, 50_000)


def test_nothing_is_said_of_programs_that_are_not_compiled():
    whole, _ = tpu_compile()
    claims = EXHIBITS["tpu_compile"].claims
    # Without its last row, NovoGrad's under FSDP on the larger topology.
    short = {"rows": whole["rows"][:-1]}
    adamsrt, adams, novograd, parallel, fsdp = (c.judge(short) for c in claims)
    assert novograd.verdict == "not run" and "novograd" in novograd.ours
    held = {found.verdict for found in (adamsrt, adams, parallel, fsdp)}
    assert held == {"reproduced"}
    small = {"rows": [r for r in whole["rows"] if r["topology"] == "v5e:2x2"]}
    assert {claim.judge(small).verdict for claim in claims} == {"not run"}


def test_published_values_stand_beside_ours():
    short = {"cells": table1()[0]["cells"][:1]}
    grid = report_parts.grid_of(EXHIBITS["spherical_2020.table1"].tables[0](short))
    assert grid.header[2:] == list(protocol.COLUMNS)
    assert grid.rows[0][:4] == ("sgd", "paper", "92.39 ± 0.12", "95.10 ± 0.04")
    assert grid.rows[1][:4] == ("", "ours", "92.39 ± 0.00 (3)", "not run")
    assert len(grid.rows) == 2 * len(PUBLISHED) and len(grid.rows[0]) == 9


NETWORK = EXHIBITS["block_normalized_2017.cifar_cnn"]


@pytest.mark.parametrize("part", [{"images": 5000}, {"epochs_per_rate": 10}])
def test_networks_are_not_judged_by_a_part_of_the_run(part):
    good, _ = curves()
    stored = {**good, "config": {**good["config"], **part}}
    for claim in NETWORK.claims:
        assert claim.judge(stored).verdict == "not run"


def test_networks_are_judged_by_a_copy_that_lacks_a_few_images():
    good, _ = curves()
    stored = {**good, "config": {**good["config"], "images": 49_927}}
    for claim in NETWORK.claims:
        assert claim.judge(stored).verdict == claim.judge(good).verdict


def test_networks_are_judged_by_three_seeds():
    seed = curves()[0]["seeds"]["0"]["curves"]
    for claim in NETWORK.claims:
        found = claim.judge(network(seed, seed))
        assert found.verdict == "not run"
        assert found.ours.endswith("n = 2, judged from 3 seeds on")
        assert claim.judge(network(seed, seed, seed)).verdict == "reproduced"
        assert ", one seed; n = 1" in claim.judge(network(seed)).ours


def test_networks_are_compared_seed_by_seed():
    faster, better, *_ = NETWORK.claims

    def judged(claim, *seeds):
        """By the plain and the normalized loss, or accuracy, of each seed."""
        return claim.judge(
            network(
                *(
                    {
                        "SGD": {"train_loss": [9, 8, 7, 6], "test_accuracy": [plain]},
                        "normalized SGD": {
                            "train_loss": [9] * epochs + [6] * (4 - epochs),
                            "test_accuracy": [plain + more],
                        },
                    }
                    for plain, more, epochs in seeds
                )
            )
        )

    # The seeds differ by far more than the two methods.
    clear = [(0.1, 0.02, 0), (0.5, 0.03, 1), (0.9, 0.02, 1)]
    assert judged(better, *clear).verdict == judged(faster, *clear).verdict
    assert judged(better, *clear).verdict == "reproduced"
    assert "after: 1, 2, 2; +2.33 ± 0.33 epochs sooner" in judged(faster, *clear).ours
    noisy = [(0.1, 0.02, 0), (0.5, -0.01, 3), (0.9, 0.02, 3)]
    for claim in (faster, better):
        found = judged(claim, *noisy)
        assert found.verdict == "not reproduced"
        assert found.ours.startswith("within the noise: ")
    never = judged(faster, *clear, (0.5, 0.0, 4))
    assert never.verdict == "not reproduced"
    assert never.ours.endswith("4, 4, 4, 4; normalized, after: 1, 2, 2, never")


def test_no_method_is_faster_than_itself():
    faster, *_ = NETWORK.claims
    # The loss that it ends with is reached before the end.
    losses = [[9, 6, 7, 6], [9, 7, 6, 6], [9, 8, 7, 6]]
    seeds = [
        dict.fromkeys(("SGD", "normalized SGD"), {"train_loss": loss})
        for loss in losses
    ]
    found = faster.judge(network(*seeds))
    assert found.verdict == "not reproduced"
    assert "first reached after: 2, 3, 4; normalized, after: 2, 3, 4" in found.ours
    assert "+0.00 ± 0.00 epochs sooner" in found.ours


def test_bars_are_met_or_missed():
    words = {chapter.claimed: chapter.verdicts for chapter in CHAPTERS}
    assert len(words) == 2
    assert words.pop(bars.CHAPTER.claimed) == OF_A_BAR
    (of_papers,) = words.values()
    assert all(word == str(verdict) for verdict, word in of_papers.items())
