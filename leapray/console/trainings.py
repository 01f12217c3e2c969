"""The live table of trainings that run in parallel; in a job's log, lines of the same figures."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from numbers import Real
from typing import Literal, get_args

from rich import box
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from leapray.console import terminal
from leapray.console.numbers import digits
from leapray.console.progress import Record
from leapray.console.tables import shortened_names

State = Literal["training", "failed", "waiting", "finished", "stopped", "kept"]
"""What a training can be doing, in the order that a short terminal shows them; ``kept`` is finished since an earlier start."""

_FIGURES = ("epoch", "done", "skill", "best", "loss", "rows/s", "left")
_LEAST_WANTED = ("rows/s", "loss", "best", "epoch", "done")
"""Figures that a narrow terminal leaves out, the first ones first."""
_GAP, _NAME = 2, 12
"""Spaces before a column; letters of a name that figures leave room for."""
_REFRESHES, _SUMMARY_SECONDS, _NOTES, _FEW = 2.0, 30.0, 3, 4
"""Of the terminal in a second; least time between a log's summaries; notes that are shown below the table."""
_FRAME = 6
"""Lines of a terminal that are neither trainings nor notes: title, header and its rule, what is left out, summary, the cursor's."""


@contextmanager
def trainings_table(title: str, names: Sequence[str], clock: Callable[[], float] = time.monotonic) -> Iterator[TrainingsTable]:
    """What follows trainings in parallel, fed their records and states from any thread.

    On a terminal it is a table, gone afterwards. Elsewhere it is a line for every validation and every new state of a training, and
    now and then one about all of them. Names that come later are added at the end.
    """
    if not terminal.console.is_terminal:
        yield _Lines(names, clock)
        return
    grid = _Grid(title, names, clock)
    with Live(console=terminal.console, transient=True, refresh_per_second=_REFRESHES, get_renderable=grid.picture):
        yield grid


class _Training:
    """The last that is known of one training."""

    def __init__(self) -> None:
        self.state: State = "waiting"
        self.score = -math.inf
        """The best that a validation reached, which may be R2."""
        self.best = -math.inf
        """The skill of that validation."""
        self._last: dict[str, float] = {}
        self._first: tuple[float, float] | None = None
        """When and at which step this start's first record came."""

    def add(self, record: Record, now: float) -> None:
        """Take over a record's figures, those that it has."""
        figures = {key: float(value) for key, value in record.items() if isinstance(value, Real) and math.isfinite(value)}
        step = figures.get("step")
        # after a restart steps are done again
        if step is not None and (self._first is None or step < self._last.get("step", step)):
            self._first = now, step
        self._last |= figures | {"at": now}
        if figures.get("score", -math.inf) > self.score:
            self.score, self.best = figures["score"], figures.get("skill", figures["score"])

    def figures(self) -> dict[str, str]:
        """Texts by ``_FIGURES``, of those that are known."""
        last, texts = self._last, {}
        if "epoch" in last:
            texts["epoch"] = f"{last['epoch']:.0f}"
        if "step" in last and last.get("steps"):
            texts["done"] = f"{last['step'] / last['steps']:.0%}"
        if "score" in last:
            texts |= {"skill": digits(last.get("skill")), "best": digits(self.best)}
        if "loss" in last:
            texts["loss"] = digits(last["loss"])
        if "rows_per_s" in last:
            texts["rows/s"] = f"{last['rows_per_s']:,.0f}"
        if (left := self._seconds_left()) is not None:
            minutes, seconds = divmod(round(left), 60)
            texts["left"] = f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
        return texts

    def _seconds_left(self) -> float | None:
        """At the speed of this start, while it trains and once there is a speed."""
        if self.state != "training" or self._first is None or "steps" not in self._last:
            return None
        started, first = self._first
        done, rest = self._last["step"] - first, self._last["steps"] - self._last["step"]
        left = (self._last["at"] - started) / done * rest if done > 0 else math.inf
        return left if rest > 0 and math.isfinite(left) else None


class TrainingsTable:
    """Trainings by name, each with its state and last figures. Every method may be called from any thread."""

    def __init__(self, names: Sequence[str], clock: Callable[[], float]) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._trainings = {name: _Training() for name in names}

    def add(self, name: str, record: Record) -> None:
        """Take a run's record; whatever figures it lacks stay as they were. The first one makes a waiting training ``training``."""
        with self._lock:
            training = self._of(name)
            if training.state == "waiting":
                self._enter(name, "training", "")
            training.add(record, self._clock())
            self._recorded(name, record)

    def state(self, name: str, state: State, note: str = "") -> None:
        """Say what a training does now, with a few words why."""
        with self._lock:
            self._enter(name, state, " ".join(note.split()))

    def _of(self, name: str) -> _Training:
        return self._trainings.setdefault(name, _Training())

    def _enter(self, name: str, state: State, note: str) -> None:
        self._of(name).state = state
        self._entered(name, state, note)

    def _summary(self) -> str:
        """How many are in which state, and the best of all."""
        validated = [(t.score, name, t.best) for name, t in self._trainings.items() if math.isfinite(t.score)]
        best = max(validated, default=None)
        return _counts(self._trainings.values()) + (f"; best {best[1]}, skill {digits(best[2])}" if best else "")

    def _entered(self, name: str, state: State, note: str) -> None:
        """A training was given a state."""

    def _recorded(self, name: str, record: Record) -> None:
        """A training's figures are those of a new record."""


class _Grid(TrainingsTable):
    """On a terminal: a table as high as fits."""

    def __init__(self, title: str, names: Sequence[str], clock: Callable[[], float]) -> None:
        super().__init__(names, clock)
        self._title = title
        self._notes: dict[str, str] = {}

    def _entered(self, name: str, state: State, note: str) -> None:
        self._notes.pop(name, None)
        if note:
            self._notes[name] = f"{name} {state}: {note}"

    def picture(self) -> Group:
        """The table as it is now, what it has no lines for, the summary and the last notes."""
        with self._lock:
            notes = list(self._notes.values())[-_NOTES:]
            shown = self._shown(terminal.console.height - _FRAME - len(notes))
            hidden = [training for name, training in self._trainings.items() if name not in shown]
            grid = Table(
                title=self._title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 0, 0, 1)
            )
            header, *rows = self._rows(shown)
            for index, column in enumerate(header):
                grid.add_column(column, justify="right" if index > 1 else "left", no_wrap=True)
            for row in rows:
                grid.add_row(*map(_line, row))
            below = [f"and {len(hidden)} more: {_counts(hidden)}"] if hidden else []
            return Group(grid, *(_line(f" {text}") for text in (*below, self._summary(), *notes)))

    def _rows(self, shown: Sequence[str]) -> list[list[str]]:
        """Header and rows, as wide as the console: a narrow one has fewer figures, and names that are shortened but distinct."""
        states = [self._trainings[name].state for name in shown]
        texts = [self._trainings[name].figures() for name in shown]
        columns = list(_FIGURES)

        def room() -> int:
            """Letters that are left for the names."""
            wide = [max(len(column), *(len(text.get(column, "")) for text in texts)) for column in columns]
            return terminal.console.width - sum(_GAP + width for width in (*wide, max(map(len, (*states, "state"))))) - _GAP

        for column in _LEAST_WANTED:
            if room() < min(max(map(len, shown)), _NAME):
                columns.remove(column)
        names = shortened_names(shown, max(room(), 1))
        rows = [
            [name, state, *(text.get(column, "") for column in columns)] for name, state, text in zip(names, states, texts, strict=True)
        ]
        return [["", "state", *columns], *rows]

    def _shown(self, lines: int) -> list[str]:
        """Names that fit: all in their order, or those in the most interesting states."""
        names = list(self._trainings)
        if len(names) <= lines:
            return names
        ranks = {state: rank for rank, state in enumerate(get_args(State))}
        return sorted(names, key=lambda name: ranks[self._trainings[name].state])[: max(lines, 1)]


class _Lines(TrainingsTable):
    """In a log: a line for what happens."""

    def __init__(self, names: Sequence[str], clock: Callable[[], float]) -> None:
        super().__init__(names, clock)
        self._states: dict[str, tuple[State, str]] = {}
        self._summarised = clock()

    def _entered(self, name: str, state: State, note: str) -> None:
        if self._states.get(name) == (state, note):
            return
        self._states[name] = state, note
        terminal.say(f"{name}  {state}" + (f": {note}" if note else ""))

    def _recorded(self, name: str, record: Record) -> None:
        if "score" in record:
            texts = self._of(name).figures()
            labels = {"epoch": "epoch {}", "skill": "skill {}", "loss": "loss {}", "rows/s": "{} rows/s"}
            terminal.say("  ".join([name, *(label.format(texts[key]) for key, label in labels.items() if key in texts)]))
        now = self._clock()
        if now - self._summarised >= _SUMMARY_SECONDS:
            self._summarised = now
            terminal.say(self._summary() + self._far())

    def _far(self) -> str:
        """How far those are that train, the first few of them."""
        far = [f"{name} {t.figures().get('done', '0%')}" for name, t in self._trainings.items() if t.state == "training"]
        return f" ({', '.join(far[:_FEW])})" if far else ""


def _counts(trainings: Iterable[_Training]) -> str:
    """``2 training, 1 finished``."""
    counted = Counter(training.state for training in trainings)
    return ", ".join(f"{counted[state]} {state}" for state in get_args(State) if state in counted)


def _line(text: str) -> Text:
    """Text that is cut, not wrapped, and may hold brackets."""
    return Text(text, no_wrap=True, overflow="ellipsis")
