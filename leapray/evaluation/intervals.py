"""How sure a score is: moments kept apart by day, and 95 % intervals of skill and R2 from drawing the days again.

Neighbouring steps are nearly equal and the columns of a step share their weather, so whole days are drawn with replacement, not rows
(Kunsch 1989, The jackknife and the bootstrap for general stationary observations). A resample holds fewer different days, which lowers
the score itself, all columns at once: the plain percentiles of many columns' mean can leave out the score that they are of. They are
therefore taken about their median and put about the score, widened by sqrt(n / (n - 1)) for n blocks (Hesterberg 2015, What teachers
should know about the bootstrap): it is the interval of the score of so many days.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Self

import numpy as np

from leapray.climsim.calendar import STEPS_PER_DAY
from leapray.climsim.schema import Targets
from leapray.evaluation.metrics import ByColumn, ErrorMoments, Score, TargetStatistics, without_rounding
from leapray.recipe import Select

LEVEL = 0.95
_RESAMPLES = 1000
_MOST_BLOCKS = 400
"""With more blocks neighbouring ones are drawn together, which costs no precision and takes in what one day tells of the next."""
_CHUNK_NUMBERS = 2**20
"""Numbers that a chunk of resamples holds at a time, 8 bytes each: what stays in a core's cache."""
_SAME = 1e-6
"""What the truth of the same rows may differ by, in parts of it."""

Figures = Callable[[ByColumn], np.ndarray]
"""From scores by column ``(..., t)`` to the figures that are asked for ``(..., k)``, such as means over some columns."""


def time_blocks(steps: np.ndarray) -> np.ndarray:
    """Block of each row, int64 ``(n,)``: the day, since 0001-02-01, of its absolute step."""
    return np.asarray(steps, np.int64) // STEPS_PER_DAY


@dataclass
class TimedMoments:
    """:class:`ErrorMoments` kept apart by block of time; ``+`` merges those of two parts of a set, a block's own parts into one.

    ``statistics`` are those of the training rows, against which skill is measured.
    """

    statistics: TargetStatistics
    blocks: dict[int, ErrorMoments] = field(default_factory=dict)

    @property
    def targets(self) -> Targets:
        return self.statistics.targets

    def update(self, blocks: np.ndarray, truth: np.ndarray, prediction: np.ndarray) -> None:
        """Take in one batch: the block of each row ``(n,)``, truth and prediction ``(n, t)``. Raises ValueError for other shapes."""
        if blocks.shape != (len(truth),):
            raise ValueError(f"blocks {blocks.shape} must be one to each of the {len(truth)} rows of truth")
        for block in np.unique(blocks).tolist():
            rows = blocks == block
            self.take(block, ErrorMoments.of(self.targets, truth[rows], prediction[rows]))

    def take(self, block: int, moments: ErrorMoments) -> None:
        """Take in moments of some rows of one block."""
        self.blocks[block] = self.blocks[block] + moments if block in self.blocks else moments

    def __add__(self, other: TimedMoments) -> TimedMoments:
        merged = TimedMoments(self.statistics, dict(self.blocks))
        for block, moments in other.blocks.items():
            merged.take(block, moments)
        return merged

    def to_arrays(self) -> dict[str, np.ndarray]:
        """``blocks`` int64 ``(b,)``, ascending, their ``moments`` ``(b, 6, t)`` as :meth:`ErrorMoments.to_array` gives them, and the
        training rows' ``mean`` and ``variance (t,)`` and ``origin``, and the names of the ``targets``."""
        blocks, known = sorted(self.blocks), self.statistics
        moments = np.array([self.blocks[block].to_array() for block in blocks])
        return {
            "blocks": np.array(blocks, np.int64),
            "moments": moments.reshape(-1, *ErrorMoments.empty(self.targets).to_array().shape),
            "mean": known.mean,
            "variance": known.variance,
            "origin": np.array(known.origin),
            "targets": np.array(self.targets.names),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Self:
        """Inverse of :meth:`to_arrays`."""
        targets = Targets.of(map(str, arrays["targets"]))
        statistics = TargetStatistics(targets, arrays["mean"], arrays["variance"], str(arrays["origin"]))
        moments = (ErrorMoments.from_array(targets, array) for array in arrays["moments"])
        return cls(statistics, dict(zip(arrays["blocks"].tolist(), moments, strict=True)))

    def total(self) -> ErrorMoments:
        """The moments of the rows of all blocks."""
        return sum((self.blocks[block] for block in sorted(self.blocks)), ErrorMoments.empty(self.targets))

    def score(self) -> Score:
        """Scores over the rows of all blocks. Raises ValueError without rows."""
        return self.total().score(self.statistics)


@dataclass(frozen=True)
class Interval:
    """Where the score of so many days of the same climate lies with probability ``level``; it always holds the score."""

    low: float
    high: float
    level: float = LEVEL


@dataclass(frozen=True)
class Difference:
    """A score, as a rule the skill, of a variant less that of its base, and the interval in which it lies with probability ``level``; its
    ends are NaN where none can be told."""

    value: float
    low: float
    high: float
    level: float = LEVEL


def interval(
    moments: TimedMoments, select: Select = "skill", level: float = LEVEL, resamples: int = _RESAMPLES, seed: int = 0
) -> Interval | None:
    """Interval of the skill, or of R2, each the mean over the learned columns.

    None where none can be told: of fewer than two blocks, or of a score that is not finite. Raises ValueError without rows.
    """
    if not _resamples_tell(moments, select):
        return None
    resampled = _mean(select, moments.targets)(_resampled_scores(moments, resamples, seed))[:, 0]
    low, high = _about(np.array(moments.score().chosen(select)), resampled, len(moments.blocks), level)
    return Interval(without_rounding(float(low)), without_rounding(float(high)), level)


def difference(
    base: TimedMoments,
    variant: TimedMoments,
    select: Select = "skill",
    level: float = LEVEL,
    resamples: int = _RESAMPLES,
    seed: int = 0,
) -> Difference | None:
    """Score of ``variant`` less that of ``base``, paired: every resample draws the same blocks for both, so that shared weather cancels.

    Both are measured against the statistics of ``base``. None as for :func:`interval`. Raises ValueError without rows, and when the two do
    not have the same rows in the same blocks.
    """
    _check_same_rows(base, variant)
    if not (_resamples_tell(base, select) and _resamples_tell(variant, select)):
        return None
    (found,) = differences(base, variant, _mean(select, base.targets), level, resamples, seed)
    return Difference(without_rounding(found.value), without_rounding(found.low), without_rounding(found.high), level)


def differences(
    base: TimedMoments, variant: TimedMoments, figures: Figures, level: float = LEVEL, resamples: int = _RESAMPLES, seed: int = 0
) -> list[Difference]:
    """Differences as :func:`difference` gives them, of any figures of the scores at once, each with an interval of its own.

    Ends are NaN of fewer than two blocks, and of figures that are no numbers. Raises ValueError as :func:`difference` does.
    """
    _check_same_rows(base, variant)
    # one yardstick for both, or a difference would tell how their training rows differ
    variant = TimedMoments(base.statistics, variant.blocks)
    values = figures(variant.score().columns) - figures(base.score().columns)
    low = high = np.full_like(values, np.nan)
    if len(base.blocks) > 1:
        resampled = figures(_resampled_scores(variant, resamples, seed)) - figures(_resampled_scores(base, resamples, seed))
        low, high = _about(values, resampled, len(base.blocks), level)
    return [Difference(*ends, level) for ends in zip(values.tolist(), low.tolist(), high.tolist(), strict=True)]


def _resamples_tell(moments: TimedMoments, select: Select) -> bool:
    return bool(np.isfinite(moments.score().chosen(select))) and len(moments.blocks) > 1


def _check_same_rows(base: TimedMoments, variant: TimedMoments) -> None:
    if base.targets != variant.targets:
        raise ValueError("a paired difference needs the same targets in both")
    if base.blocks.keys() != variant.blocks.keys():
        only = sorted(base.blocks.keys() ^ variant.blocks.keys())
        raise ValueError(f"a paired difference needs the same blocks in both; {len(only)} are in one only, the first is {only[0]}")
    for block, moments in base.blocks.items():
        if moments.count != (other := variant.blocks[block].count):
            raise ValueError(f"a paired difference needs the same rows in both; block {block} has {moments.count} and {other}")
        ours, theirs = (np.stack([one.low, one.high])[:, base.targets.learned] for one in (moments, variant.blocks[block]))
        # a truth that was written as text may have lost its last digits
        if not np.allclose(ours, theirs, rtol=_SAME, atol=0):
            raise ValueError(f"a paired difference needs the same rows in both; in block {block} their truth has other extremes")


def _about(value: np.ndarray, resampled: np.ndarray, blocks: int, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the intervals about values ``(k,)``, from the values of their resamples ``(resamples, k)``."""
    low, middle, high = np.quantile(resampled, [(1 - level) / 2, 0.5, (1 + level) / 2], axis=0)
    widening = math.sqrt(blocks / (blocks - 1))
    return value + (low - middle) * widening, value + (high - middle) * widening


def _mean(select: Select, targets: Targets) -> Figures:
    return lambda scores: scores.chosen(select)[..., targets.learned].mean(axis=-1, keepdims=True)


def _resampled_scores(moments: TimedMoments, resamples: int, seed: int) -> ByColumn:
    """Scores of each resample, ``(resamples, t)``; blocks alike in number are drawn alike by the same seed."""
    parts = _parts(moments)
    count = len(parts)
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    chunk = max(_CHUNK_NUMBERS // (count * moments.targets.width), 1)
    found = [ByColumn.of(_resampled(parts, draws[start : start + chunk]), moments.statistics) for start in range(0, resamples, chunk)]
    return ByColumn(*(np.concatenate([getattr(some, field.name) for some in found]) for field in fields(ByColumn)))


def _parts(moments: TimedMoments) -> np.ndarray:
    """What is drawn: moments ``(b, 6, t)`` of at most 400 blocks or runs of neighbouring blocks."""
    blocks = [moments.blocks[block] for block in sorted(moments.blocks)]
    run = -(-len(blocks) // _MOST_BLOCKS)
    return np.stack(
        [sum(blocks[start : start + run], ErrorMoments.empty(moments.targets)).to_array() for start in range(0, len(blocks), run)]
    )


def _resampled(parts: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Moments ``(r, 6, t)`` of the rows of all parts ``(b, 6, t)``, part b taken ``draws[r, b]`` times.

    The deviation is that within the parts plus that of their means about the resample's own mean: exact, as ``ErrorMoments.__add__`` is.
    """
    count, mean, deviation, error, low, high = parts.swapaxes(0, 1)
    # a product of matrices is over the blocks
    rows = draws @ count
    weights = draws * count[:, 0]
    means = weights @ mean / rows
    shifts = mean - means[:, None]
    between = (weights[:, None] @ np.square(shifts, out=shifts))[:, 0]
    lows, highs = (np.tile(extreme, (len(draws), 1)) for extreme in (low.min(axis=0), high.max(axis=0)))
    # extremes tell constant columns; one that varies in every part varies in every resample
    flat = (low == high).any(axis=0)
    drawn = draws[..., None] > 0
    lows[:, flat] = np.where(drawn, low[:, flat], np.inf).min(axis=1)
    highs[:, flat] = np.where(drawn, high[:, flat], -np.inf).max(axis=1)
    return np.stack([rows, means, draws @ deviation + between, draws @ error, lows, highs], axis=1)
