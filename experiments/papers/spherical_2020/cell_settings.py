"""How the cells of Table 1 were trained, in words and as the commands that do it."""

import statistics
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from experiments.data.dataset import VALIDATION_FRACTION
from experiments.papers.spherical_2020 import protocol
from experiments.report.claims import Stored, is_whole

# All official training images but those that are for validation.
IMAGES = {
    name: images - round(VALIDATION_FRACTION * images)
    for name, images in (("cifar10", 50_000), ("cifar100", 50_000), ("svhn", 73_257))
}
# What the paper's numbers are of.
OPTIONS = {"dtype": "float32", "channel_axes": "paper"}

Cells = Sequence[Mapping[str, Any]]


def found(cells: Cells, key: str, column: str | None = None) -> set[Any]:
    """Return the values of a setting: in the cells of a column, or in all."""
    settings = ({**cell["config"], **cell} for cell in cells)
    return {one[key] for one in settings if column in (None, one["column"])}


def have_all_images(cells: Cells, column: str) -> bool:
    """Say whether the cells of a column were trained on the whole data set."""
    official = IMAGES[_data_of(column)]
    return all(is_whole(images, official) for images in found(cells, "images", column))


def are_whole(cells: Cells, column: str) -> bool:
    """Say whether the cells of a column had all epochs and all images."""
    epochs = found(cells, "epochs", column)
    return epochs == {protocol.EPOCHS} and have_all_images(cells, column)


def effort(cells: Cells, column: str | None = None) -> str:
    """Say how long cells were trained, on what: those of a column, or all."""
    epochs, images = (found(cells, key, column) for key in ("epochs", "images"))
    words = f"{span(epochs)} epochs of {span(images)} images"
    for key, usual in OPTIONS.items():
        if (values := found(cells, key, column)) != {usual}:
            words += f", {key} {' or '.join(sorted(values))}"
    return words


def tested(cells: Cells) -> str:
    """Say over how many test images the accuracies are."""
    sizes = {_data_of(cell["column"]): cell["config"]["data"]["test"] for cell in cells}
    words = ", ".join(f"{size:,} of {name}" for name, size in sizes.items())
    return f"accuracies over test images: {words}"


def span(numbers: Collection[int]) -> str:
    """Return the smallest and the largest number, or the only one."""
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def in_words(percents: Sequence[float]) -> str:
    """Return mean, standard deviation of the sample, where it has one, and size."""
    mean = f"{statistics.mean(percents):.2f}"
    if len(percents) > 1:
        mean += f" ± {statistics.stdev(percents):.2f}"
    return f"{mean} ({len(percents)})"


def devices_of(cells: Cells) -> list[str]:
    """Return what cells were trained on, of which a cell may name several."""
    return sorted({one for cell in cells for one in cell["device"].split("; ")})


def commands(stored: Stored, usual: type) -> tuple[str, ...]:
    """Return the options of the commands that train the stored cells.

    Args:
        stored: what `table1.json` holds.
        usual: the class of the options, whose defaults need not be given.
    """
    trained: dict[tuple[str, str], list[str]] = {}
    for cell in stored["cells"]:
        trained.setdefault((_options(cell, usual), cell["column"]), []).append(
            cell["optimizer"]
        )
    # A command trains the same optimizers in all its columns.
    columns: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (options, column), names in trained.items():
        columns.setdefault((options, tuple(names)), []).append(column)
    return tuple(
        " ".join(
            filter(
                None,
                (
                    options,
                    _part("columns", places, protocol.COLUMNS),
                    _part("optimizers", names, protocol.OPTIMIZERS),
                ),
            )
        )
        for (options, names), places in columns.items()
    )


def _options(cell: Mapping[str, Any], usual: type) -> str:
    """Return the options that set how a cell is trained, but the usual ones."""
    settings = {
        "seeds": len(cell["test_accuracy"]),
        "epochs": cell["epochs"],
        **{key: cell["config"][key] for key in OPTIONS},
    }
    changed = {
        key: value for key, value in settings.items() if value != getattr(usual, key)
    }
    if not is_whole(cell["images"], IMAGES[_data_of(cell["column"])]):
        changed["images"] = cell["images"]
    return " ".join(f"--{k.replace('_', '-')} {v}" for k, v in changed.items())


def _part(option: str, names: Sequence[str], every: Sequence[str]) -> str:
    return "" if set(names) == set(every) else f"--{option} {' '.join(names)}"


def _data_of(column: str) -> str:
    return column.partition("/")[0]
