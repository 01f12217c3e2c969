"""Progress of one thing at a time: a bar on a terminal, and of a training, lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from leapray.console import terminal
from leapray.console.numbers import digits

Update = Callable[..., None]
"""``update(done, total, note="")``: what a bar shows."""
Record = Mapping[str, Any]

_SPEED_SECONDS, _LINE_SECONDS = 600.0, 10.0
"""Over how long a training's speed is averaged, for its records may be a minute apart; least time between its lines in a log."""


@contextmanager
def bar(description: str) -> Iterator[Update]:
    """A progress bar for the length of the block, gone afterwards; without a terminal, nothing."""
    columns = (BarColumn(bar_width=24), TaskProgressColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with _progress(f"{description:<12}", columns) as update:
        yield update


@contextmanager
def training_bar(description: str, clock: Callable[[], float] = time.monotonic) -> Iterator[Callable[[Record], None]]:
    """What follows a training, fed its records: epoch, loss, skill of the last validation, rows/s and the time left.

    On a terminal it is a bar, gone afterwards. Elsewhere it is a line for every validation, and one now and then in between.
    """
    if not terminal.console.is_terminal:
        yield _Lines(description, clock).add
        return
    score = _LastScore()
    # narrow, so that the figures fit into 80 columns
    columns = (BarColumn(bar_width=10), TaskProgressColumn(), TimeRemainingColumn())
    with _progress(description, columns, _SPEED_SECONDS) as update:
        yield lambda record: update(record["step"], record["steps"], training_note(record, score.of(record)))


@contextmanager
def _progress(description: str, columns: tuple[ProgressColumn, ...], speed_seconds: float = 30.0) -> Iterator[Update]:
    shown = (TextColumn("{task.description}"), *columns, TextColumn("{task.fields[note]}"))
    with Progress(
        *shown, console=terminal.console, transient=True, disable=not terminal.console.is_terminal, speed_estimate_period=speed_seconds
    ) as progress:
        task = progress.add_task(description, total=None, note="")

        def update(done: int, total: int, note: str = "") -> None:
            progress.update(task, completed=done, total=total, note=note)

        yield update


class _LastScore:
    """Skill at the last validation among the records seen."""

    def __init__(self) -> None:
        self._skill: float | None = None

    def of(self, record: Record) -> float | None:
        self._skill = record.get("skill", self._skill)
        return self._skill


class _Lines:
    """A training in a log: a line now and then."""

    def __init__(self, description: str, clock: Callable[[], float]) -> None:
        self._description, self._clock, self._score = description, clock, _LastScore()
        self._first: tuple[float, int] | None = None
        self._written = clock()

    def add(self, record: Record) -> None:
        now, skill = self._clock(), self._score.of(record)
        self._first = self._first or (now, record["step"])
        if "skill" in record or now - self._written >= _LINE_SECONDS:
            self._written = now
            place = f"{self._description}  step {record['step']:,} of {record['steps']:,}"
            validated = f"  validation loss {digits(record['val_loss'])}" if "val_loss" in record else ""
            terminal.say(f"{place}  {training_note(record, skill)}{validated}{self._left(now, record)}")

    def _left(self, now: float, record: Record) -> str:
        """The time that the rest takes at the speed so far, once there is one."""
        started, first = self._first or (now, record["step"])
        done, rest = record["step"] - first, record["steps"] - record["step"]
        if done <= 0 or rest <= 0:
            return ""
        return f"  {timedelta(seconds=round((now - started) / done * rest))} left"


def training_note(record: Record, skill: float | None = None) -> str:
    """A record's figures in one line, with the skill of the last validation: the record's own, or ``skill``."""
    skill = record.get("skill", skill)
    score = f"  skill {digits(skill)}" if skill is not None else ""
    # a validation that a resumed training begins with has seen no steps
    speed = f"  {record['rows_per_s']:,.0f} rows/s" if "rows_per_s" in record else ""
    return f"epoch {record['epoch']}  loss {digits(record['loss'])}{score}{speed}"
