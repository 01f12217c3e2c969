"""A sweep's trials as its plots take them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

FINISHED, STOPPED, UNSCORED = "finished", "stopped early", "no validation"


@dataclass(frozen=True)
class Tried:
    """One trial: the value of every searched key by its dotted name, and its best validation R2, None if it came to none."""

    values: Mapping[str, Any]
    r2: float | None
    stopped: bool = False

    @property
    def score(self) -> float:
        """The R2, minus infinity where there is none."""
        return self.r2 if self.r2 is not None and math.isfinite(self.r2) else -math.inf

    @property
    def state(self) -> str:
        """``finished``, ``stopped early``, or ``no validation`` where there is no R2."""
        if not math.isfinite(self.score):
            return UNSCORED
        return STOPPED if self.stopped else FINISHED


def best_of(trials: Sequence[Tried]) -> int:
    """Index of the first trial of the highest R2. Raises ValueError when none has one."""
    scores = [trial.score for trial in trials]
    if not any(map(math.isfinite, scores)):
        raise ValueError("a plot of trials needs at least one with a validation R2")
    return scores.index(max(scores))
