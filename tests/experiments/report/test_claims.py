"""Claims are decided by the numbers: there are some that make them hold, and fail."""

import numpy as np
import pytest

from experiments.benchmarks import bars, compile_time, muon_time, step_time
from experiments.papers.block_normalized_2017.curve_figures import WHOLE
from experiments.papers.decoupled_decay_2019.decay_grid import MARGIN
from experiments.papers.decoupled_decay_2019.grid_training import as_text
from experiments.papers.decoupled_decay_2019.pretrained_layers import (
    FRACTIONS,
    LENGTHS,
    of_length,
)
from experiments.papers.novograd_2019.large_batches import part
from experiments.papers.novograd_2019.modes import BASELINES, PAPERS
from experiments.report.claims import OF_A_BAR, is_whole
from experiments.report.report import chapters

EXHIBITS = {
    name: exhibit
    for chapter in chapters()
    for name, exhibit in chapter.exhibits.items()
}
NETWORK = EXHIBITS["block_normalized_2017.cifar_cnn"]
SEEDS = 6


# For each experiment, results with which all its claims hold, and none.


def curves():
    """Of a network; normalized SGD is ahead of normalized Adam as well."""
    slow, fast, faster = (2.0, 0.2), (1.0, 0.7), (0.5, 0.8)
    methods = ("SGD", "normalized SGD", "Adam", "normalized Adam")
    ends = [(slow, faster, slow, fast), (faster, slow, faster, fast)]
    return [network(dict(zip(methods, each, strict=True))) for each in ends]


def network(ends, seeds=3):
    """Stored curves of a whole run, that end with these losses and accuracies."""
    images, epochs = WHOLE["cifar10"]

    def ended(loss, accuracy, seed):
        # The seeds differ by far more than the methods.
        last = {"train_loss": loss * 10**seed, "test_accuracy": accuracy + 0.1 * seed}
        return {key: [0.5, value] for key, value in last.items()}

    return {
        "config": {"data": "cifar10", "images": images, "epochs_per_rate": epochs},
        "seeds": {
            str(seed): {
                "curves": {name: ended(*end, seed) for name, end in ends.items()}
            }
            for seed in range(seeds)
        },
    }


def recurrent():
    """Of a recurrent network; of the normalized ones, Adam is ahead or behind."""
    methods = ("SGD", "normalized SGD", "Adam", "normalized Adam")
    found = []
    for ends in [(0.06, 0.04, 0.05, 0.03), (0.03, 0.04, 0.05, 0.06)]:
        tuned = {
            name: {
                "exponents": [-1.0, 0.0],
                "errors": [[end + 0.1 * seed, 0.9] for seed in range(SEEDS)],
                "losses": [[end * 2.0**seed, 99.0] for seed in range(SEEDS)],
            }
            for name, end in zip(methods, ends, strict=True)
        }
        found.append({"curves": tuned})
    return found


def tuned():
    """Of dense layers at the best rate of each optimizer."""
    methods = ("SGD", "normalized SGD", "Adam", "normalized Adam")
    return [
        {
            "arms": {
                name: {
                    "fresh_losses": [[9.0, end * 2.0**seed] for seed in range(SEEDS)],
                    "fresh_errors": [end + 0.1 * seed for seed in range(SEEDS)],
                }
                for name, end in zip(methods, ends, strict=True)
            }
        }
        for ends in [(0.04, 0.02, 0.03, 0.01), (0.02, 0.04, 0.01, 0.03)]
    ]


def decay_grid():
    rates, decays = np.meshgrid(range(9), range(9), indexing="ij")
    shapes = {
        # A valley along the diagonal, and one that leans less and is deeper.
        True: 0.06 + MARGIN / 2 * abs(rates + decays - 8) + 1e-5 * abs(rates - 4),
        False: 0.05 + MARGIN / 2 * abs(decays - 4) + 1e-5 * abs(rates - 4),
    }
    axes = {"learning_rates": list(range(9)), "decays": list(range(9))}
    kinds = ("wrong_tuning", "wrong_judging")

    def wrong(errors):
        return as_text(np.rint([1e7 * errors] * SEEDS).astype(int))

    forms = {"SGD, L2": True, "SGDW": False, "Adam, L2": True, "AdamW": False}
    return [
        {
            "batch_norm": True,
            "tuning_images": 10**7,
            "judging_images": 10**7,
            "grids": {
                name: {**axes, **dict.fromkeys(kinds, wrong(shapes[coupled is right]))}
                for name, coupled in forms.items()
            },
        }
        for right in (True, False)
    ]


def modes():
    exponents = np.linspace(-2, 2, 9)

    def curve(best, decades):
        errors = best + 0.01 * abs(exponents) / (decades / 2)
        seeds = [errors + 1e-3 * seed for seed in range(SEEDS)]
        return {"exponents": list(exponents), "errors": np.array(seeds)}

    good, bad = curve(0.05, 2.0), curve(0.08, 1.0)
    return [
        {"curves": {PAPERS: a, **dict.fromkeys(BASELINES, b)}}
        for a, b in ((good, bad), (bad, good))
    ]


def large_batches():
    def stored(ours, theirs):
        each = {PAPERS: ours, **dict.fromkeys(BASELINES, theirs)}
        found = {
            part(name, 400): {
                "exponents": [-3.0, -2.0, -1.0],
                "best": -2.0,
                "errors": [error + 0.1 * seed for seed in range(SEEDS)],
            }
            for name, error in each.items()
        }
        return {
            "epochs": 500,
            "training_images": 400,
            "batches": [20, 400],
            "found": found,
        }

    return [stored(0.059, 0.05), stored(0.061, 0.05)]


def pretrained_layers():
    """The best fraction is 0.03 after much pretraining; or none is, or all."""
    chosen = [
        [9, 1.0, 9],
        [9, 0.2, 9],
        [9, 0.1, 9],
        [9, 0.3, 9],
        [9, 0.4, 9],
        [9, 5, 9],
    ]

    def length(*errors):
        seeds = np.array(errors) + np.linspace(0, 0.1, SEEDS)[:, None]
        return {"tuning": chosen, "best": [-2.0] * 6, "errors": seeds}

    few = length(0.2, 0.2, 0.04, 0.2, 0.03, 0.2)
    good = length(0.2, 0.2, 0.05, 0.2, 0.2, 0.2)
    bad = length(0.04, 0.2, 0.05, 0.06, 0.06, 0.03)
    many = length(0.2, 0.2, 0.06, 0.04, 0.2, 0.2)
    told = {"fractions": FRACTIONS, "exponents": [-3.0, -2.0, -1.0]}
    return [
        {**told, "lengths": dict(zip(names, lengths, strict=True))}
        for names in [[of_length(epochs) for epochs in LENGTHS]]
        for lengths in ((few, dict(few), good), (many, dict(many), bad))
    ]


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


def muon():
    largest = {
        f"{name}, {of}": getattr(case, of)
        for name, case in muon_time.CASES.items()
        for of in ("step", "compile")
        if getattr(case, of) is not None
    }
    return [
        {
            "rows": [
                {"optimizer": name, "ratio": bar + more, "quartiles": [0.5, 2.0]}
                for name, bar in largest.items()
            ]
        }
        for more in (0.0, 0.01)
    ]


def loop():
    times = {"loop_ms": 11.0, "bare_ms": 10.0, "quartiles": [1.0, 1.2]}
    return [{**times, "ratio": 1.1}, {**times, "ratio": 1.11}]


def tpu_compile(ours=bars.OURS, small=0):
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
            for program in ("optax.adamw", *ours)
        ]
        return {"rows": rows}

    return [stored(280, []), stored(281, [{"bytes": small + 4}])]


def gpu_compile():
    def stored(conditionals):
        rows = [
            {"optimizer": name, "conditionals": conditionals}
            for name in step_time.CASES
        ]
        return {"rows": rows}

    return [stored(0), stored(1)]


def language_model():
    """Every optimizer that is claimed to be ahead is, or is behind."""
    good = {
        "normuon": 2.0,
        "muon": 2.1,
        **dict.fromkeys(("hyperball", "rotational", "novograd", "adamsrt"), 2.51),
        "normalized adam": 2.4,
        "adamw": 2.5,
        "sgd": 3.0,
    }
    bad = {name: 2.6 if end == 2.51 else 5.0 - end for name, end in good.items()}

    def stored(ends, lost):
        sweep = {}
        for name, end in ends.items():
            seeds = [end + 0.3 * seed for seed in range(7)]
            cold = [bits + lost[name == "adamw"] for bits in seeds]
            sweep[name] = {
                "warmed": {"ends": seeds, "curves": [[8.0, end, end]] * 7},
                "cold": {"ends": cold},
            }
        return {"sweep": sweep}

    return [stored(good, (0.1, 0.2)), stored(bad, (0.2, 0.1))]


def best_rates():
    """The best rate moves by an octave a doubling, or stays."""
    exponents = np.arange(-7, 8) * np.log10(2)

    def at(best, seed):
        curve = 3 + (exponents - best * np.log10(2)) ** 2 + 0.1 * seed
        return {"rates": list(10.0**exponents), "ends": [list(curve)] * 2}

    moving = {f"width {32 * 2**n}": at(n, n) for n in range(3)}
    still = {f"width {32 * 2**n}": at(0, n) for n in range(3)}

    def stored(of):
        kinds = of.items()
        return {"found": {f"{k}, {w}": f for k, one in kinds for w, f in one.items()}}

    forms = ("coupled decay", "independent decay", "hyperball")
    good = dict(zip(forms, (moving, still, still), strict=True))
    bad = dict(zip(forms, (still, moving, moving), strict=True))
    return [stored(good), stored(bad)]


def toy_problems():
    factors = [-9.0, -3.0, 0.0, 3.0, 9.0]

    def stored(wide, narrow, lengths, distances, left):
        layer = {
            name: {"losses": [[[0.1 * 10 ** (s * abs(f)) for f in factors]]] * SEEDS}
            for name, s in (
                ("hyperball", wide),
                ("rotational", wide),
                ("adamw", narrow),
            )
        }
        quotient = {
            name: {
                "distances": [[[distances[name]]]] * SEEDS,
                "lengths": [[[lengths[name]]]] * SEEDS,
            }
            for name in ("adam", "adamsrt", "hyperball")
        }
        return {
            "factors": factors,
            "layer": layer,
            "quotient": quotient,
            "decay": {"exact": [0.5, 0.1], "compensated": [0.5, left]},
        }

    good = {"adam": 2.0, "adamsrt": 1.0, "hyperball": 1.0}
    bad = {"adam": 1.0, "adamsrt": 2.0, "hyperball": 1.1}
    return [stored(0.0, 1.0, good, good, 0.101), stored(1.0, 0.0, bad, bad, 0.2)]


def lengths_and_angles():
    path = "layers/0/attention/query/kernel"

    def stored(ratio):
        seed = {path: dict.fromkeys(("weight", "angle"), [ratio, ratio])}
        expected = {path: {"weight": 1.0, "angle": 1.0}}
        return {"predicted": expected, "seeds": [seed] * SEEDS}

    return [stored(1.0), stored(2.0)]


def performance_profile():
    def stored(**steps):
        of = {name: ["-", "-", one] for name, one in steps.items()}
        problems = {str(number): {"steps": of} for number in range(5)}
        return {"steps": 10, "problems": problems}

    return [stored(adam="3", hyperball="-"), stored(adam="-", hyperball="3")]


# Those of the other experiments are decided in tests of their own.
GOOD_AND_BAD = {
    "block_normalized_2017.deep_mlp_tuned": tuned,
    "block_normalized_2017.cifar_cnn": curves,
    "block_normalized_2017.recurrent": recurrent,
    "decoupled_decay_2019.decay_grid": decay_grid,
    "decoupled_decay_2019.pretrained_layers": pretrained_layers,
    "novograd_2019.large_batches": large_batches,
    "novograd_2019.modes": modes,
    "transformers.best_rates": best_rates,
    "transformers.language_model": language_model,
    "transformers.lengths_and_angles": lengths_and_angles,
    "transformers.performance_profile": performance_profile,
    "transformers.toy_problems": toy_problems,
    "step_time": lambda: ratios(step_time.CASES),
    "compile_time": lambda: ratios(compile_time.CASES),
    "loop_time": loop,
    "muon_time": muon,
    "gpu_compile": gpu_compile,
    "tpu_compile": tpu_compile,
    "tpu_transformer": lambda: tpu_compile(bars.OF_TRANSFORMER, bars.MOST_EXCHANGED),
}


@pytest.mark.parametrize("name", GOOD_AND_BAD)
def test_every_claim_can_hold_and_can_fail(name):
    good, bad = GOOD_AND_BAD[name]()
    for claim in EXHIBITS[name].claims:
        held, failed = claim.judge(good), claim.judge(bad)
        assert held.verdict == "reproduced", claim
        assert failed.verdict == "not reproduced", claim
        assert held.ours != failed.ours


def test_what_couples_is_seen_with_batch_norm_alone():
    good, _ = decay_grid()
    claim = EXHIBITS["decoupled_decay_2019.decay_grid"].claims[0]
    assert claim.judge({**good, "batch_norm": False}).verdict == "not tested here"


def test_a_copy_may_lack_a_few_images():
    assert is_whole(50_000, 50_000) and is_whole(49_927, 50_000)
    assert not is_whole(49_499, 50_000) and not is_whole(5_000, 50_000)


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"images": 5000}, "50 epochs of 5,000 images, where the example has 50 of"),
        ({"epochs_per_rate": 10}, "10 epochs of 50,000 images, where the example"),
        ({"images": 49_927}, None),
    ],
)
def test_networks_are_judged_by_whole_runs(part, words):
    good, _ = curves()
    stored = {**good, "config": {**good["config"], **part}}
    for claim in NETWORK.claims:
        found = claim.judge(stored)
        assert (found.verdict == "not tested here") == (words is not None)
        assert found.ours.startswith(words or "")


def test_networks_are_judged_by_three_seeds_and_against_their_noise():
    ends = {"SGD": (2.0, 0.2), "normalized SGD": (1.0, 0.7)}
    faster, better, *_ = NETWORK.claims
    for claim in (faster, better):
        two = claim.judge(network(ends, seeds=2))
        assert two.ours == "n = 2, judged from 3 seeds on"
        assert claim.judge(network(ends)).verdict == "reproduced"
        stored = network(ends)
        # One seed that goes the other way.
        normalized = stored["seeds"]["0"]["curves"]["normalized SGD"]
        normalized |= {"train_loss": [9.0, 9.0], "test_accuracy": [0.1, 0.1]}
        assert claim.judge(stored).verdict == "inconclusive"


def test_nothing_is_said_of_programs_that_are_not_compiled():
    whole, _ = tpu_compile()
    claims = EXHIBITS["tpu_compile"].claims
    # Without its last row, NovoGrad's under FSDP on the larger topology.
    short = {"rows": whole["rows"][:-1]}
    adamsrt, adams, novograd, parallel, fsdp = (c.judge(short) for c in claims)
    assert novograd.verdict == "not tested here" and "novograd" in novograd.ours
    held = {found.verdict for found in (adamsrt, adams, parallel, fsdp)}
    assert held == {"reproduced"}
    small = {"rows": [r for r in whole["rows"] if r["topology"] == "v5e:2x2"]}
    assert {claim.judge(small).verdict for claim in claims} == {"not tested here"}


def test_bars_are_met_or_missed():
    words = {chapter.claimed: chapter.verdicts for chapter in chapters()}
    assert len(words) == 2
    assert words.pop(bars.CHAPTER.claimed) == OF_A_BAR
    (of_papers,) = words.values()
    assert all(word == str(verdict) for verdict, word in of_papers.items())
