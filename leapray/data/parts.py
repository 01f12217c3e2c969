"""What a recipe's data is cut into: one part for each split of each source, and each part into groups of input pieces.

Groups depend on the order of the pieces alone, so that the number of workers changes nothing in the result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from leapray import storage
from leapray.data import flat
from leapray.data.flat import Selection
from leapray.errors import UserError
from leapray.recipe import SPLITS, Data

Progress = Callable[[str, int, int], None]
"""Called with the name of the pass, the tasks done and the tasks in all."""
Notice = Callable[[str], None]
"""Called with one sentence about what is passed over in the input."""

WORK = ".work"
"""Directory of what is in work: receipts and scattered files."""


@dataclass(frozen=True)
class Part:
    """One split of one source: its input pieces in groups, and where its shards go."""

    source: str
    split: str
    kind: str
    months: str
    groups: tuple[tuple[flat.Piece, ...], ...]
    buckets: int
    url: str
    input: str
    """Fingerprint of the files that hold its rows."""

    @property
    def key(self) -> str:
        """The part as a recipe names it."""
        return f"sources.{self.source}.{self.split}"

    @property
    def pieces(self) -> list[flat.Piece]:
        return [piece for group in self.groups for piece in group]

    @property
    def work(self) -> str:
        """Its directory of what is in work."""
        return storage.join(self.url, WORK)


def cut(data: Data, prepared: str, notice: Notice | None = None) -> list[Part]:
    """Every part of a recipe's data below the directory ``prepared``, from footers and headers alone.

    Raises UserError as :func:`flat.survey` does, and for months without rows.
    """
    parts: list[Part] = []
    for name, source in data.sources.items():
        survey = flat.survey(source.path, data.variable_set, notice=notice)
        for split in SPLITS:
            if (months := source.months(split)) is None:
                continue
            pieces = survey.pieces(
                Selection(months.start, months.stop, source.stride, source.phase, source.fraction, data.seed, source.month)
            )
            groups, total = _groups(pieces, data.shuffle_rows)
            url, buckets = storage.join(prepared, split, name), max(-(-total // data.shuffle_rows), 1)
            mark = survey.fingerprint(pieces)
            twin = next((part for part in parts if (part.split, part.kind, part.input) == (split, source.kind, mark)), None)
            if twin is not None:
                raise UserError(f"sources.{name}.{split} and {twin.key} are the same files and months: every row would be there twice")
            parts.append(Part(name, split, source.kind, str(months), groups, buckets, url, mark))
    return parts


def _groups(pieces: list[flat.Piece], most: int) -> tuple[tuple[tuple[flat.Piece, ...], ...], int]:
    """Pieces in groups of about ``most`` rows at the most, and about how many they are in all."""
    groups: list[list[flat.Piece]] = [[]]
    size = total = 0
    for piece in pieces:
        selection = piece.selection
        share = selection.fraction / selection.stride if selection is not None else 1.0
        rows = max(round(piece.rows_about * share), 1)
        if groups[-1] and size + rows > most:
            groups.append([])
            size = 0
        groups[-1].append(piece)
        size, total = size + rows, total + rows
    return tuple(tuple(group) for group in groups), total


def once(url: str, work: Callable[[], Any], files: Callable[[Any], list[str]] = lambda _: []) -> Any:
    """The json value noted at ``url``, or else what ``work`` gives, noted there when it returns.

    ``files`` names what the work of a result wrote: where one is gone, or the note is not whole, it is done again. What ``work`` writes
    must be the same each time.
    """
    if storage.exists(url):
        try:
            result = storage.read_json(url)
            if all(storage.exists(file) for file in files(result)):
                return result
        except UserError:
            # a note that a crash of the machine left empty
            pass
    result = work()
    storage.write_json(url, result)
    return result
