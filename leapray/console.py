"""What a user sees in the terminal: one progress bar at a time, short lines, tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

# no emoji: a path or a class may hold ":x:"
console = Console(highlight=False, emoji=False)
errors = Console(stderr=True, highlight=False, emoji=False)

Update = Callable[..., None]
"""``update(done, total, note="")``: what a bar shows."""


@contextmanager
def bar(description: str) -> Iterator[Update]:
    """A progress bar for the length of the block, gone afterwards; without a terminal, nothing."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(f"{description:<12}", total=None, note="")

        def update(done: int, total: int, note: str = "") -> None:
            progress.update(task, completed=done, total=total, note=note)

        yield update


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


def training_note(record: dict[str, Any]) -> str:
    """What a training's bar says of a record."""
    score = f"  R2 {record['r2']:.4f}" if record.get("r2") is not None else ""
    return f"epoch {record['epoch']}  loss {record['loss']:.4f}{score}  {record['rows_per_s']:.0f} rows/s"
