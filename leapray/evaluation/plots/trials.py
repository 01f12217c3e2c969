"""A sweep's trials as its plots take them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

FINISHED, STOPPED, UNSCORED = "finished", "stopped early", "no validation"


@dataclass(frozen=True)
class Tried:
    """One trial: the value of every searched key by its dotted name, and its best validation score, None if it came to none."""

    values: Mapping[str, Any]
    reached: float | None
    stopped: bool = False

    @property
    def score(self) -> float:
        """The best validation score, minus infinity where there is none."""
        return self.reached if self.reached is not None and math.isfinite(self.reached) else -math.inf

    @property
    def state(self) -> str:
        """``finished``, ``stopped early``, or ``no validation`` where there is no score."""
        if not math.isfinite(self.score):
            return UNSCORED
        return STOPPED if self.stopped else FINISHED


def best_of(trials: Sequence[Tried]) -> int:
    """Index of the first trial of the highest score. Raises ValueError when none has one."""
    scores = [trial.score for trial in trials]
    if not any(map(math.isfinite, scores)):
        raise ValueError("a plot of trials needs at least one with a validation score")
    return scores.index(max(scores))
