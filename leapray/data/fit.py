"""The statistics pass: moments of the training rows of one source, group by group, and the transform that they give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from leapray import storage
from leapray.data import flat
from leapray.data.clean import Tally, clean, usable
from leapray.data.fitting import Fitting
from leapray.data.moments import Moments
from leapray.data.parts import WORK, Part, Progress
from leapray.data.receipts import once
from leapray.data.shards import TRANSFORM, load_transform
from leapray.data.statistics import transform_from_statistics
from leapray.data.tasks import run_tasks
from leapray.data.transform import Transform
from leapray.errors import UserError
from leapray.recipe import Data


def make_transform(data: Data, fitting: Fitting, parts: Sequence[Part], prepared: str, notify: Progress) -> Transform:
    """The transform of a prepared directory: the one that lies there, the one that the recipe carries in, or one fitted now.

    Raises UserError for statistics that cannot serve, unreadable data, and months without usable rows.
    """
    url = storage.join(prepared, TRANSFORM)
    if not storage.exists(url):
        if data.statistics is not None:
            transform = transform_from_statistics(data.statistics, data.variable_set, data.scaling, data.features)
        else:
            fit = next(part for part in parts if part.source == data.fit_source and part.split == "train")
            transform = _fit(data, fitting, fit, storage.join(prepared, WORK), notify)
        storage.write_json(url, transform.to_dict())
    return load_transform(prepared)


def _fit(data: Data, fitting: Fitting, part: Part, work: str, notify: Progress) -> Transform:
    def moments(group: int) -> dict[str, Any]:
        def take() -> dict[str, Any]:
            found = (piece_moments(piece, part.kind, fitting, data.bad_rows) for piece in part.groups[group])
            return Moments.merge_all(found, fitting.width).to_dict()

        return once(storage.join(work, f"moments-{group:06d}.json"), take)

    groups = run_tasks(moments, len(part.groups), lambda done, count: notify("statistics", done, count))
    total = Moments.merge_all((Moments.from_dict(values, fitting.width) for values in groups), fitting.width)
    if total.count == 0:
        raise UserError(f"{part.key}: no usable rows in months {part.months}")
    return fitting.fit(total, {"source": part.source, "kind": part.kind, "months": part.months, "rows": total.count})


def piece_moments(piece: flat.Piece, kind: str, fitting: Fitting, bad_rows: str) -> Moments:
    """Moments of a piece's usable rows, as the transform is fitted on them."""
    if fitting.raw and piece.selection is None:
        total = Moments.merge_all(
            (Moments.of_columns(fitting.raw_columns(columns)) for columns in flat.read_columns(piece, fitting.variables)), fitting.width
        )
        if usable(total):
            return total
    blocks = clean(flat.read_piece(piece, fitting.variables, kind=kind), piece.path, bad_rows, Tally.empty(fitting.variables))
    return Moments.merge_all((Moments.of(fitting.columns(block.inputs, block.targets)) for block in blocks), fitting.width)
