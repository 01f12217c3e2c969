"""A sample submission: the ids and columns that a competition asks for, in order, and the weights that its values are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from leapray.climsim.schema import SAMPLE_ID, Targets
from leapray.errors import UserError
from leapray.evaluation.tables import columns, files, is_unnamed_index, read_ids, read_targets, require_finite, some


@dataclass(frozen=True)
class SampleSubmission:
    """What a submission must look like.

    ``weights (t,)``, in the order of the targets, turn physical units into the submission's: 0 or 1, or 1/std.
    """

    ids: pa.ChunkedArray
    columns: tuple[str, ...]
    weights: np.ndarray


def read_sample(url: str, targets: Targets, notice: Callable[[str], None] | None = None) -> SampleSubmission:
    """Read a sample submission, csv or parquet; the unnamed index that pandas writes is no column of it.

    ``notice`` is called with one sentence when files of a folder are passed over.
    Raises UserError for a column that is unknown or missing, an id that stands twice, no rows, and weights that are negative,
    not finite, or differ between rows.
    """
    names = [name for name in columns(files(url)[0]) if not is_unnamed_index(name)]
    if unknown := [name for name in names if name not in {SAMPLE_ID, *targets.columns}]:
        raise UserError(f"{url}: holds column {some(pa.array(unknown))}, expected only {SAMPLE_ID} and the {targets.width} target columns")
    if len(set(names)) < len(names):
        raise UserError(f"{url}: a column stands twice; expected {SAMPLE_ID} and each of the {targets.width} target columns once")
    ids = read_ids(url, notice)
    weights: np.ndarray | None = None
    done = 0
    for values in read_targets(url, targets):
        require_finite(values, ids[done : done + len(values)], targets.columns, url)
        done += len(values)
        for row in values[:1] if weights is None else ():
            weights = row.copy()
        differs = np.flatnonzero((values != weights).any(axis=0))
        if len(differs):
            raise UserError(f"{url}: weights of column {targets.columns[differs[0]]} differ between rows; expected one weight per column")
    if weights is None:
        raise UserError(f"{url}: has no rows; expected the ids to submit")
    if (weights < 0).any() or not weights.any():
        raise UserError(f"{url}: weights are {'negative' if weights.any() else 'all 0'}, expected 0 or more, and some above it")
    return SampleSubmission(ids, tuple(name for name in names if name != SAMPLE_ID), weights)
