"""Tables as data: the terminal prints them, the report's pages are made of them."""

import dataclasses
from collections.abc import Iterable

import rich.box
import rich.table


@dataclasses.dataclass(frozen=True)
class Table:
    """Cells under a header.

    Attributes:
        title: above it.
        header: a cell a column.
        rows: of as many cells each.
        caption: below it, a paragraph a line.
        left: so many columns, from the first on, are words; the others are numbers,
            which stand at the right.
    """

    title: str
    header: tuple[str, ...]
    rows: Iterable[tuple[str, ...]]
    caption: str = ""
    left: int = 1

    def __post_init__(self) -> None:
        """Keep the rows, which may come from a generator, and refuse ragged ones."""
        object.__setattr__(self, "rows", [tuple(row) for row in self.rows])
        for row in self.rows:
            if len(row) != len(self.header):
                raise ValueError(f"{row} has not a cell for each of {self.header}")

    @classmethod
    def of(cls, table: "Table | rich.table.Table") -> "Table":
        """Return a table as data, also of one that was made for the terminal alone."""
        if isinstance(table, Table):
            return table
        columns = table.columns
        return cls(
            str(table.title or ""),
            tuple(str(column.header) for column in columns),
            zip(*(map(str, column.cells) for column in columns), strict=True),
            str(table.caption or ""),
            sum(column.justify != "right" for column in columns),
        )

    @property
    def right(self) -> list[bool]:
        """Whether a column is aligned to the right."""
        return [place >= self.left for place in range(len(self.header))]

    def __rich__(self) -> rich.table.Table:
        """Return what a terminal prints, narrow enough for one of 80."""
        shown = rich.table.Table(
            title=self.title,
            caption=self.caption,
            box=rich.box.SIMPLE_HEAD,
            padding=0,
        )
        for name, right in zip(self.header, self.right, strict=True):
            shown.add_column(name, justify="right" if right else "left", no_wrap=True)
        for row in self.rows:
            shown.add_row(*row)
        return shown
