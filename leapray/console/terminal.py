"""Where everything that a user sees is written, its lines and its tables."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table

# no emoji: a path or a class may hold ":x:"
console = Console(highlight=False, emoji=False)
errors = Console(stderr=True, highlight=False, emoji=False)


def say(line: str) -> None:
    """One line of result."""
    console.print(line, soft_wrap=True, markup=False)


def table(title: str, header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """A table whose first column is text and whose others are figures."""
    grid = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1))
    for index, name in enumerate(header):
        grid.add_column(name, justify="left" if index == 0 else "right", no_wrap=True)
    for row in rows:
        grid.add_row(*row)
    console.print(grid)
