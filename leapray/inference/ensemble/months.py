"""The months of a recipe's sources that choose an ensemble's weights, and those that it is tested on, as pieces of their files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from leapray import storage
from leapray.data import flat
from leapray.data.flat import Selection
from leapray.recipe import Data

CHOOSING, TEST = ("blend", "validation"), ("test",)
"""Splits, of which a source's first one counts."""


@dataclass(frozen=True)
class Portion:
    """One split of one source, as pieces of its files."""

    source: str
    split: str
    kind: str
    path: str
    months: str
    selection: Selection
    pieces: tuple[flat.Piece, ...]
    mark: str
    """Changes when the files that hold its rows do, or which of them it takes."""

    @property
    def key(self) -> str:
        """The portion as a recipe names it."""
        return f"{self.source}.{self.split}"


def portions(data: Data, splits: Sequence[str], notice: Callable[[str], None] | None = None) -> list[Portion]:
    """Of every source the first of these splits that it has. Raises UserError as :func:`flat.survey` does, and for months without rows."""
    found = []
    for name, source in data.sources.items():
        split = next((split for split in splits if source.months(split) is not None), None)
        if split is None:
            continue
        months = source.months(split)
        assert months is not None
        selection = Selection(months.start, months.stop, source.stride, source.phase, source.fraction, data.seed, source.month)
        survey = flat.survey(source.path, data.variable_set, notice=notice)
        pieces = survey.pieces(selection)
        mark = f"{source.kind} {selection!r} {survey.fingerprint(pieces)}"
        found.append(Portion(name, split, source.kind, storage.absolute(source.path), str(months), selection, tuple(pieces), mark))
    return found
