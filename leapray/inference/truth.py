"""The truth of an evaluation: its rows in order, where and when they are, and the states that masses and physics need."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import pyarrow as pa

from leapray.climsim.grid import Grid, low_res_grid
from leapray.climsim.netcdf import read_grid
from leapray.climsim.row_keys import KINDS, row_place
from leapray.climsim.schema import SNOWHICE, VARIABLES, Layout, Targets, VariableSet
from leapray.data import flat
from leapray.data.clean import good_rows
from leapray.data.flat.blocks import Chosen
from leapray.data.flat.listing import Notice
from leapray.errors import UserError
from leapray.evaluation.accumulate import Batch
from leapray.evaluation.tables import ROWS, Keys, columns, files, name, read_keys, read_targets, require_finite

_KINDS = {kind.code: kind for kind in KINDS.values()}


@dataclass(frozen=True)
class Rows:
    """A batch of the truth, and the raw columns of :attr:`TruthFiles.states` ``(n, i)`` that the physics reads; None without inputs."""

    batch: Batch
    inputs: np.ndarray | None


class TruthFiles:
    """Flat parquet or csv with ``targets``; with the inputs too, it tells pressures and states.

    ``selection`` are the rows that count, of which there must be some, and ``kind`` is what they are taken for without such a column;
    with ``bad_rows`` ``drop`` those that hold NaN, Inf or fill values do not count, where there are inputs. ``keys`` are of all these,
    ``lacking`` says in sentences what cannot be told of them. Raises UserError for files that cannot be read or lack targets, rows that
    cannot be selected, and a grid that is none.
    """

    def __init__(
        self,
        source: str,
        targets: Targets,
        selection: flat.Selection | None = None,
        grid: str | None = None,
        notice: Notice | None = None,
        *,
        kind: str | None = None,
        bad_rows: str = "refuse",
    ) -> None:
        self.source, self.targets = source, targets
        self.states = VariableSet("states", Layout(()), targets)
        """Of which the raw columns are those that are read: surface pressure and water."""
        self._kind, self._drop, self._dropped = kind, bad_rows == "drop", 0
        self.lacking: list[str] = []
        self.has_inputs = all(set(self.states.raw.columns) <= set(columns(file)) for file in files(source))
        if selection is not None and str(selection) and not self.has_inputs:
            raise UserError(f"{source}: has targets alone, of which no months can be chosen; expected the inputs too")
        survey = flat.survey(source, self.states, notice=notice) if self.has_inputs else None
        self._every = _known_columns(source, targets) if survey else []
        self._pieces = survey.pieces(selection) if survey else []
        self.keys = self._read_keys(self._pieces, selection) if survey else read_keys(source, notice)
        if self._dropped and notice is not None:
            notice(f"{source}: left out {self._dropped} row(s) that hold NaN, Inf or fill values")
        some = selection is not None or self._drop
        self.whole = cache(lambda: self._read_keys(survey.pieces(), whole=True)) if survey and some else None
        """Reads the keys of all rows, where only some of them count."""
        self.timed = self.keys.rows is not None and bool((self.keys.rows >= 0).all())
        self.grid = self._find_grid(grid)
        if not self.has_inputs:
            self.lacking.append(
                f"{source} has no inputs: without surface pressures there are no masses of layers, so none of ClimSim's own metrics."
            )

    def _read_keys(self, pieces: Sequence[flat.Piece], selection: flat.Selection | None = None, *, whole: bool = False) -> Keys:
        chosen = [block for piece in pieces for block in self._read(piece, (), drop=self._drop and not whole)]
        if not chosen:
            raise UserError(f"{self.source}: no rows{selection or ''}")
        rows = np.concatenate([block.row for block in chosen])
        return Keys(name(self.source), pa.chunked_array([block.sample_id for block in chosen], pa.string()), rows)

    def _read(self, piece: flat.Piece, names: Sequence[str], *, drop: bool) -> Iterator[Chosen]:
        """Columns of a piece's rows; to know which of them to ``drop`` all raw inputs and targets are read."""
        if not drop:
            yield from flat.read_chosen(piece, names, kind=self._kind, max_rows=ROWS)
            return
        every = self._every
        wanted = [every.index(name) for name in names]
        for block in flat.read_chosen(piece, every, kind=self._kind, max_rows=ROWS):
            good = good_rows(block.values)
            self._dropped += int((~good).sum())
            yield Chosen(block.values.T[wanted][:, good].T, block.sample_id.filter(pa.array(good)), block.row[good])

    def _find_grid(self, url: str | None) -> Grid | None:
        """The grid on which all rows lie; None, with the reason in ``lacking``, where there is none or it is not known."""
        if not self.timed:
            self.lacking.append(
                f"Rows of {self.source} do not tell their time and place, as columns kind, step and ncol do: "
                "no intervals by days, no bands of latitude, none of ClimSim's own metrics."
            )
            return None
        assert self.keys.rows is not None
        code, _, ncol = row_place(self.keys.rows)
        kinds = [_KINDS[one] for one in np.unique(code).tolist()]
        if len(kinds) > 1:
            self.lacking.append(
                f"{self.source} holds {' and '.join(kind.name for kind in kinds)}: bands of latitude and ClimSim's metrics need one kind."
            )
            return None
        met = int(ncol.max()) + 1
        if url is not None:
            grid = read_grid(url)
        elif kinds[0].columns == len(low_res_grid().area):
            grid = low_res_grid()
        else:
            self.lacking.append(f"The grid of {kinds[0].name} is not known: give its lat, lon and area with --grid.")
            return None
        if met != len(grid.area):
            self.lacking.append(
                f"Rows of {self.source} lie in columns 0 to {met - 1}, and the grid has {len(grid.area)}: no bands of latitude, none of "
                "ClimSim's own metrics."
            )
            return None
        return grid

    def blocks(self, *, states: bool) -> Iterator[Rows]:
        """All rows in order, at most 8192 at a time; inputs are read for the physics when ``states`` says so.

        Raises UserError when a number is not finite.
        """
        if not self.has_inputs:
            yield from self._bare()
            return
        width, pressure = self.targets.width, self.states.raw["state_ps"].start
        names = (*self.targets.columns, *(self.states.raw.columns if states else ("state_ps",)))
        for piece in self._pieces:
            for block in self._read(piece, names, drop=self._drop):
                require_finite(block.values, block.sample_id, names, self.source)
                targets, inputs = block.values[:, :width], block.values[:, width:]
                batch = self._batch(targets, block.row, inputs[:, pressure if states else 0])
                yield Rows(batch, inputs if states else None)

    def _bare(self) -> Iterator[Rows]:
        start = 0
        for targets in read_targets(self.source, self.targets):
            require_finite(targets, self.keys.ids[start : start + len(targets)], self.targets.columns, self.source)
            row = None if self.keys.rows is None else self.keys.rows[start : start + len(targets)]
            start += len(targets)
            yield Rows(self._batch(targets, row, None), None)

    def _batch(self, targets: np.ndarray, row: np.ndarray | None, pressure: np.ndarray | None) -> Batch:
        if row is None or not self.timed:
            return Batch(targets, surface_pressure=pressure)
        _, step, ncol = row_place(row)
        return Batch(targets, step, ncol, pressure, self.grid)


def _known_columns(source: str, targets: Targets) -> list[str]:
    """The raw inputs and the targets in the first file of a source, without snow over sea ice, which has a fill value without sea ice."""
    raw = {column for name, one in VARIABLES.items() if name != SNOWHICE.name and name not in targets for column in one.columns}
    return [column for column in columns(files(source)[0]) if column in raw] + list(targets.columns)
