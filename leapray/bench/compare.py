"""Contestants run in turn, and what one figure of ours is to that of a baseline.

Only ratios of runs side by side mean anything on a shared machine: every round runs all contestants, the order turning from round
to round, and the ratio that is told is the median over the rounds.
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
"""What one run of a contestant gives: rates, times or bytes, by name."""
Contestant = Callable[[], Figures]
Rounds = dict[str, dict[str, list[float]]]
"""By a contestant's name and a figure's, its values round by round."""
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Settings:
    """Where a bench makes its data, how much of it, and how often everything is run."""

    directory: Path
    rows: int | None = None
    """Rows of the data set; each bench has its own default."""
    rounds: int = 5
    quick: bool = False
    """Only see that everything runs: one round over little data, whose ratios say nothing."""

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
    """One line of a bench: our figure, the baseline's, and their ratio in each round."""

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
        return {
            "bench": self.bench,
            "case": self.case,
            "ours": self.ours,
            "baseline": self.baseline,
            "unit": self.unit,
            "ratio": self.ratio,
            "bar": None if self.bar is None else self.bar.value,
            "met": self.met,
        }


def interleave(contestants: Mapping[str, Contestant], settings: Settings, progress: Progress | None = None) -> Rounds:
    """Figures of every contestant in every round; a round before them, which does not count, fills the caches."""
    found: Rounds = {name: {} for name in contestants}
    names, uncounted = list(contestants), 0 if settings.quick else 1
    rounds = 1 if settings.quick else settings.rounds + uncounted
    for number in range(rounds):
        turn = number % len(names)
        for place, name in enumerate(names[turn:] + names[:turn], start=1):
            figures = contestants[name]()
            if progress is not None:
                progress(number * len(names) + place, rounds * len(names))
            if number >= uncounted:
                for figure, value in figures.items():
                    found[name].setdefault(figure, []).append(value)
    return found


def show(comparisons: Sequence[Comparison], judged: bool = True) -> None:
    """The comparisons of one bench as tables, one for each unit: medians, the median ratio, the lowest and highest, and, if they are to be
    judged, their bars."""
    for unit, group in groupby(sorted(comparisons, key=lambda c: c.unit, reverse=True), key=lambda c: c.unit):
        rows: list[tuple[str, ...]] = [(c.case, _short(c.ours), _short(c.baseline), *_verdict(c, judged)) for c in group]
        table(f"bench {comparisons[0].bench}: {unit}", ("", "ours", "baseline", "ratio", "spread", "bar"), rows)


def _verdict(comparison: Comparison, judged: bool) -> tuple[str, str, str]:
    spread = f"{min(comparison.ratios):.3g}-{max(comparison.ratios):.3g}" if len(comparison.ratios) > 1 else ""
    bar = f"{comparison.bar} {'met' if comparison.met else 'missed'}" if comparison.bar and judged else ""
    return f"{comparison.ratio:.3g}", spread, bar


def _short(value: float) -> str:
    """Three digits, thousands as k."""
    return f"{value / 1000:.3g}k" if value >= 1000 else f"{value:.3g}"
