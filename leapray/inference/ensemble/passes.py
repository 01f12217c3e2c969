"""The passes over truth and members' predictions, piece by piece in tasks: products of errors, and predictions with their scores.

Shapes: M members, n rows of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch

from leapray import storage
from leapray.climsim.schema import VariableSet
from leapray.data import flat
from leapray.data.clean import Tally, clean
from leapray.data.tasks import run_tasks
from leapray.evaluation.intervals import TimedMoments
from leapray.evaluation.metrics import TargetStatistics
from leapray.inference.ensemble.files import BLOCK_ROWS, PartReader
from leapray.inference.ensemble.months import Portion
from leapray.inference.ensemble.products import ErrorProducts
from leapray.inference.parts import member_directory, part, part_writer
from leapray.inference.weights import Combination, mean_weights
from leapray.models.emulator import Physics
from leapray.training.scoring import days

_HALF_DAYS = 5
"""Days of the runs that go to one half of the months and the other in turn: longer than weather lasts."""

Update = Callable[[int, int], None]


@dataclass(frozen=True)
class Scored:
    """Moments by day of the ensemble, of the plain mean of its members, and of each member alone, all with the physics applied."""

    ensemble: TimedMoments
    mean: TimedMoments
    members: tuple[TimedMoments, ...]

    def __add__(self, other: Scored) -> Scored:
        members = tuple(ours + theirs for ours, theirs in zip(self.members, other.members, strict=True))
        return Scored(self.ensemble + other.ensemble, self.mean + other.mean, members)


@dataclass(frozen=True)
class _Task:
    """One piece of a portion by its number, and where its members' predictions lie and the ensemble's go."""

    portion: Portion
    number: int
    members: str
    place: str
    variables: VariableSet

    def blocks(self, names: Sequence[str], bad_rows: str) -> Iterator[tuple[flat.Block, np.ndarray]]:
        """The rows of the piece, with the members' predictions ``(M, n, t)``."""
        piece = self.portion.pieces[self.number]
        readers = [PartReader(part(member_directory(self.members, name), self.number), self.variables.targets) for name in names]
        read = flat.read_piece(piece, self.variables, kind=self.portion.kind, max_rows=BLOCK_ROWS)
        for block in clean(read, piece.path, bad_rows, Tally.empty(self.variables)):
            yield block, np.stack([reader.take(block.row) for reader in readers])


def _tasks(portions: Sequence[Portion], members: Sequence[str], places: Sequence[str], variables: VariableSet) -> list[_Task]:
    zipped = zip(portions, members, places, strict=True)
    return [_Task(portion, number, member, place, variables) for portion, member, place in zipped for number in range(len(portion.pieces))]


def accumulate(
    portions: Sequence[Portion],
    places: Sequence[str],
    names: Sequence[str],
    statistics: TargetStatistics,
    variables: VariableSet,
    bad_rows: str,
    progress: Update,
) -> tuple[ErrorProducts, ErrorProducts]:
    """Error products of the members' predictions of these portions, which lie below ``places``, kept apart in two halves by days.

    Rows that tell no time are all in the second half.
    """
    tasks = _tasks(portions, places, places, variables)

    def products(number: int) -> tuple[ErrorProducts, ErrorProducts]:
        halves = [ErrorProducts.empty(len(names), statistics) for _ in range(2)]
        for block, predictions in tasks[number].blocks(names, bad_rows):
            half = days(block.row) // _HALF_DAYS % 2
            for index in np.unique(half).tolist():
                rows = half == index
                halves[index] += ErrorProducts.of(block.targets[rows], predictions[:, rows], statistics)
        return halves[0], halves[1]

    first, second = ErrorProducts.empty(len(names), statistics), ErrorProducts.empty(len(names), statistics)
    for found in run_tasks(products, len(tasks), progress):
        first, second = first + found[0], second + found[1]
    return first, second


def apply(
    portions: Sequence[Portion],
    members: Sequence[str],
    places: Sequence[str],
    names: Sequence[str],
    combination: Combination,
    statistics: TargetStatistics,
    variables: VariableSet,
    bad_rows: str,
    progress: Update,
) -> Scored:
    """Score the ensemble of this combination and its members, whose predictions lie below ``members``, the physics applied last.

    The parts of the ensemble's predictions that are not below ``places`` yet are written.
    """
    tasks = _tasks(portions, members, places, variables)
    targets = statistics.targets
    physics, plain = Physics(variables), Combination.of(mean_weights(len(names), targets))

    def score(number: int) -> Scored:
        task = tasks[number]
        found = _nothing(len(names), statistics)
        with ExitStack() as stack:
            there = storage.exists(part(task.place, task.number))
            write = None if there else stack.enter_context(part_writer(task.place, task.number, targets))
            for block, predictions in task.blocks(names, bad_rows):
                day, states = days(block.row), torch.from_numpy(block.inputs)

                def corrected(values: np.ndarray, states: torch.Tensor = states) -> np.ndarray:
                    return physics(states, torch.from_numpy(values)).numpy()

                ensemble = corrected(combination(predictions))
                found.ensemble.update(day, block.targets, ensemble)
                found.mean.update(day, block.targets, corrected(plain(predictions)))
                for moments, values in zip(found.members, predictions, strict=True):
                    moments.update(day, block.targets, corrected(values))
                if write is not None:
                    write(block, ensemble, ())
        return found

    results = run_tasks(score, len(tasks), progress)
    return sum(results, _nothing(len(names), statistics))


def _nothing(members: int, statistics: TargetStatistics) -> Scored:
    return Scored(TimedMoments(statistics), TimedMoments(statistics), tuple(TimedMoments(statistics) for _ in range(members)))
