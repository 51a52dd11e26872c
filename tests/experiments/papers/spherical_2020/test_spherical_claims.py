"""Which cells decide a claim, and what is said of those that are not the paper's."""

import pytest

from experiments.papers.spherical_2020 import protocol
from experiments.papers.spherical_2020.cell_settings import IMAGES
from experiments.papers.spherical_2020.table1 import EXHIBIT
from experiments.papers.spherical_2020.table1_claims import ORDER, PUBLISHED

ORDERED, VALUES = EXHIBIT.claims
COLUMN = "cifar10/resnet20"


def table(changes=None, **common):
    """The paper's column, with what is changed in all cells or in those named."""
    cells = []
    for name, row in PUBLISHED.items():
        options = {"dtype": "float32", "channel_axes": "paper"}
        changed = {**common, **(changes or {}).get(name, {})}
        cells.append(
            {
                "column": COLUMN,
                "optimizer": name,
                "test_accuracy": [row[COLUMN][0] / 100 + n * 1e-5 for n in (-1, 0, 1)],
                "epochs": protocol.EPOCHS,
                "images": IMAGES["cifar10"],
                "device": "a device",
                "config": {
                    "data": {"test": 9980},
                    **{key: changed.pop(key, at) for key, at in options.items()},
                },
                **changed,
            }
        )
    return {"cells": cells}


def test_the_paper_s_own_settings_are_judged():
    assert VALUES.judge(table()).verdict == "reproduced"
    assert ORDERED.judge(table()).verdict == "reproduced"
    extent = EXHIBIT.extent(table())
    assert "405 epochs of 47,500 images, where" in extent
    assert "accuracies over test images: 9,980 of cifar10;" in extent
    worse = {"sgd": {"test_accuracy": [0.8, 0.8001, 0.8002]}}
    assert VALUES.judge(table(worse)).verdict == "not reproduced"
    assert ORDERED.judge(table(worse)).verdict == "reproduced"
    # The published script did the opposite of what the paper means by it.
    adamg = {"adamg": {"test_accuracy": [0.1, 0.1001, 0.1002]}}
    assert VALUES.judge(table(adamg)).verdict == "reproduced"


def test_commands_are_those_of_the_stored_cells():
    def commands(changes=None, **common):
        return EXHIBIT.stored_by(table(changes, **common))

    column = "--columns cifar10/resnet20"
    assert commands() == (f"--seeds 3 {column}",)
    assert commands(images=47_431, test_accuracy=[0.9] * 5) == (column,)
    short = {"epochs": 12, "images": 5000, "test_accuracy": [0.5]}
    assert commands(**short) == (f"--seeds 1 --epochs 12 --images 5000 {column}",)
    assert commands({"sgd": {"dtype": "bfloat16"}}) == (
        f"--seeds 3 --dtype bfloat16 {column} --optimizers sgd",
        f"--seeds 3 {column} --optimizers adam adamw adamg sgdmrt adams adamsrt",
    )


# A copy of CIFAR-10 may lack a few images, as this project's does.
@pytest.mark.parametrize(
    ("change", "values", "order"),
    [
        ({"images": 47_431}, True, True),
        ({"images": 5000}, False, False),
        ({"epochs": 60}, False, True),
        ({"epochs": 59}, False, False),
        ({"dtype": "bfloat16"}, False, True),
        ({"channel_axes": "auto"}, False, True),
        ({"test_accuracy": [0.9, 0.91]}, False, False),
    ],
)
def test_a_column_is_judged_by_what_can_tell(change, values, order):
    for claim, judged in ((VALUES, values), (ORDERED, order)):
        found = claim.judge(table(**change))
        assert (found.verdict != "not tested here") == judged, claim.text
        assert found.ours.startswith("it wants a GPU") != judged


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 60},
        {"images": 5000},
        {"dtype": "bfloat16"},
        {"channel_axes": "auto"},
    ],
)
def test_order_is_that_of_cells_that_differ_in_their_optimizer_alone(change):
    assert ORDERED.judge(table({"adams": change})).verdict == "not tested here"
    assert ORDERED.judge(table({"sgd": change})).verdict == "reproduced"
    alike = dict.fromkeys(ORDER, change)
    judged = ORDERED.judge(table(alike)).verdict != "not tested here"
    assert judged == ("images" not in change)


def test_a_difference_within_the_noise_of_several_seeds_is_inconclusive():
    seeds = {"adam": [0.80, 0.81, 0.82], "adams": [0.82, 0.80, 0.81]}
    changes = {name: {"test_accuracy": these} for name, these in seeds.items()}
    found = ORDERED.judge(table(changes))
    assert found.verdict == "inconclusive"
    assert "cifar10/resnet20 adams 81.00, cifar10/resnet20 adam 81.00" in found.ours


def test_published_values_stand_beside_ours():
    short = {"cells": table()["cells"][:1]}
    grid = EXHIBIT.tables[0](short)
    assert grid.header[2:] == protocol.COLUMNS
    assert grid.rows[0][:4] == ("sgd", "paper", "92.39 ± 0.12", "95.10 ± 0.04")
    assert grid.rows[1][:4] == ("", "ours", "92.39 ± 0.00 (3)", "not run")
    assert len(grid.rows) == 2 * len(PUBLISHED) and len(grid.rows[0]) == 9
