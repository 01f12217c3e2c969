"""The processes of a training, and how often they meet: to tell how it goes, to see that it goes well, to keep its state."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

_SHARE_OF_EPOCH = 100
_GROWTH = 4
_LONGEST_SECONDS = 30.0
"""That ranks do not meet for, however long an epoch is: notice is given two minutes ahead, and checkpoints want their time."""
_ASK_SECONDS = 5.0
"""Between questions whether a worker is about to go, at which all ranks wait for each other."""


@dataclass(frozen=True)
class Peers:
    """This process among those that train together. ``gather`` gives every rank's array of one shape, in rank order; ``warned`` tells
    all of them, who ask together, whether one is about to be taken away that they did not know of."""

    rank: int = 0
    world: int = 1
    gather: Callable[[np.ndarray], list[np.ndarray]] = field(default=lambda array: [array])
    warned: Callable[[], bool] = field(default=lambda: False)


class Pace:
    """How many steps to take before ranks meet again, by rank 0's clock: seldom enough to cost nothing, often enough to be told of."""

    def __init__(self, report_seconds: float, checkpoint_seconds: float) -> None:
        self.steps = 1
        self._report_seconds, self._checkpoint_seconds = report_seconds, checkpoint_seconds
        self._kept = self._epoch = self._begun = self._asked = time.perf_counter()

    def begin(self) -> None:
        """The next steps are counted from now; else from the end of the last ones, with what was reported and kept in between."""
        self._begun = time.perf_counter()

    def begin_epoch(self) -> None:
        self._epoch = time.perf_counter()

    def took(self, steps: int) -> float:
        """The seconds of so many steps, and so how many come next: more as an epoch goes on, which keeps its log short."""
        now = time.perf_counter()
        seconds, self._begun = now - self._begun, now
        share = min((now - self._epoch) / _SHARE_OF_EPOCH, _LONGEST_SECONDS)
        target = max(self._report_seconds, share) if self._report_seconds else 0.0
        self.steps = max(1, min(int(target * steps / seconds), _GROWTH * self.steps))
        return seconds

    def worth_keeping(self, keep: Callable[[], None], peers: Peers) -> None:
        """Call ``keep`` on all ranks if rank 0's clock says so or one of them is about to go, and take over rank 0's number of steps."""
        now = time.perf_counter()
        ours = np.array([now - self._kept >= self._checkpoint_seconds, self.steps, now - self._asked >= _ASK_SECONDS], np.float64)
        due, steps, ask = peers.gather(ours)[0].tolist()
        self.steps = int(steps)
        if ask:
            self._asked = now
        if (ask and peers.warned()) or due:
            keep()
            self.kept()

    def kept(self) -> None:
        self._kept = time.perf_counter()
