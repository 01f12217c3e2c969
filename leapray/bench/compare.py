"""Contestants that take turns, and the ratio of our figure to a baseline's.

Only ratios of runs side by side mean anything on a shared machine: every round runs all contestants, the order turns from round to round,
and the ratio is the median over the rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

from leapray.console import table

Figures = Mapping[str, float]
"""Rates, times or bytes of one run of a contestant, by name."""
Rounds = dict[str, dict[str, list[float]]]
"""By a contestant's name and a figure's, its values round by round."""


@dataclass(frozen=True)
class Settings:
    """Where a bench makes its data, how much of it, and how often everything runs."""

    directory: Path
    rows: int | None = None
    """Rows of the data; each bench has its own default."""
    rounds: int = 5
    quick: bool = False
    """Only check that everything runs: one round over little data, whose ratios mean nothing."""
    progress: Callable[[int, int], None] = lambda done, total: None

    def size(self, usual: int, quick: int) -> int:
        """Rows to make, given the bench's defaults."""
        return self.rows or (quick if self.quick else usual)


@dataclass(frozen=True)
class Bar:
    """What a ratio must reach: at least, or at most, ``value``."""

    value: float
    at_most: bool = False

    def met(self, ratio: float) -> bool:
        return ratio <= self.value if self.at_most else ratio >= self.value

    def __str__(self) -> str:
        return f"{'<=' if self.at_most else '>='}{self.value:g}"


@dataclass(frozen=True)
class Comparison:
    """Our figure, the baseline's, and their ratio in each round."""

    bench: str
    case: str
    unit: str
    ours: float
    baseline: float
    ratios: tuple[float, ...]
    bar: Bar | None = None

    @classmethod
    def of(cls, bench: str, case: str, unit: str, ours: Sequence[float], baseline: Sequence[float], bar: Bar | None = None) -> Comparison:
        """Medians of the rounds' figures, and the rounds' ratios."""
        ratios = tuple(a / b for a, b in zip(ours, baseline, strict=True))
        return cls(bench, case, unit, median(ours), median(baseline), ratios, bar)

    @property
    def ratio(self) -> float:
        return median(self.ratios)

    @property
    def met(self) -> bool | None:
        return None if self.bar is None else self.bar.met(self.ratio)

    def to_dict(self) -> dict[str, Any]:
        """The row of ``bench --json``."""
        values = {name: getattr(self, name) for name in ("bench", "case", "ours", "baseline", "unit", "ratio")}
        return values | {"bar": None if self.bar is None else self.bar.value, "met": self.met}


def interleave(contestants: Mapping[str, Callable[[], Figures]], settings: Settings) -> Rounds:
    """Figures of every contestant in every round; a round before them, which does not count, fills the caches."""
    found: Rounds = {name: {} for name in contestants}
    names, uncounted = list(contestants), 0 if settings.quick else 1
    rounds = 1 if settings.quick else settings.rounds + uncounted
    for number in range(rounds):
        turn = number % len(names)
        for place, name in enumerate(names[turn:] + names[:turn], start=1):
            figures = contestants[name]()
            settings.progress(number * len(names) + place, rounds * len(names))
            if number >= uncounted:
                for figure, value in figures.items():
                    found[name].setdefault(figure, []).append(value)
    return found


def show(comparisons: Sequence[Comparison], judged: bool = True) -> None:
    """Print the comparisons of one bench as a table for each unit: medians, the median ratio, the lowest and the highest, and, if they are
    judged, their bars."""
    for unit, group in groupby(sorted(comparisons, key=lambda c: c.unit, reverse=True), key=lambda c: c.unit):
        rows: list[tuple[str, ...]] = []
        for one in group:
            spread = f"{min(one.ratios):.3g}-{max(one.ratios):.3g}" if len(one.ratios) > 1 else ""
            bar = f"{one.bar} {'met' if one.met else 'missed'}" if one.bar and judged else ""
            rows.append((one.case, _short(one.ours), _short(one.baseline), f"{one.ratio:.3g}", spread, bar))
        # what is in ms is a part of a step
        names = ("ms", "whole step", "share") if unit == "ms" else ("ours", "baseline", "ratio")
        table(f"bench {comparisons[0].bench}: {unit}", ("", *names, "spread", "bar"), rows)


def _short(value: float) -> str:
    """Three digits, thousands as k."""
    return f"{value / 1000:.3g}k" if value >= 1000 else f"{value:.3g}"
