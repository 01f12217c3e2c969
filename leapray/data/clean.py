"""What is wrong in flat rows: NaN, Inf and fill values, refused or dropped and counted; and the rows that are left, scaled.

The shuffle into shards and the training that reads flat files both go through here, so that a model sees the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from leapray.climsim.schema import KAGGLE, SAMPLE_ID, SNOWHICE, STEP_SECONDS, UNREAL, VariableSet
from leapray.data.flat import Block
from leapray.data.moments import Moments
from leapray.data.shards import Rows
from leapray.data.transform import Transform
from leapray.errors import UserError
from leapray.evaluation.tables import require_finite

REASONS = ("NaN", "Inf", "fill value")
"""Why a row is not used."""


@dataclass
class Tally:
    """What was found in rows: values ``(reasons, c)`` that cannot be used, the rows that hold any, and, by exact column, the rows
    in which it is not ``-state / 1200``; c are the raw inputs and targets of ``variables``."""

    bad: np.ndarray
    bad_rows: int
    inexact: np.ndarray
    variables: VariableSet

    @classmethod
    def empty(cls, variables: VariableSet = KAGGLE) -> Tally:
        bad = np.zeros((len(REASONS), len(variables.columns)), np.int64)
        return cls(bad, 0, np.zeros(int(variables.targets.exact.sum()), np.int64), variables)

    def add(self, other: Tally) -> None:
        self.bad += other.bad
        self.bad_rows += other.bad_rows
        self.inexact += other.inexact

    def dropped(self) -> dict[str, dict[str, int]]:
        """Values that cannot be used, by column and reason."""
        places = zip(*np.nonzero(self.bad.T), strict=True)
        result: dict[str, dict[str, int]] = {}
        for column, reason in places:
            result.setdefault(self.variables.columns[column], {})[REASONS[reason]] = int(self.bad[reason, column])
        return result

    def inexact_rows(self) -> dict[str, int]:
        """Rows in which an exact column is not exact, by column."""
        columns = np.array(self.variables.targets.columns)[self.variables.targets.exact]
        return {str(columns[index]): int(self.inexact[index]) for index in np.flatnonzero(self.inexact)}

    def to_dict(self) -> dict[str, object]:
        return {"bad": self.bad.tolist(), "bad_rows": self.bad_rows, "inexact": self.inexact.tolist()}

    @classmethod
    def from_dict(cls, values: dict, variables: VariableSet) -> Tally:
        return cls(np.array(values["bad"], np.int64), values["bad_rows"], np.array(values["inexact"], np.int64), variables)


def clean(blocks: Iterable[Block], path: str, policy: str, tally: Tally) -> Iterator[Block]:
    """The blocks without the rows that hold NaN, Inf or fill values, which are counted; nothing for a block without any other.

    Raises UserError on the first such row if the policy is ``refuse``, naming file, columns and row; and, whatever the policy, for ids
    that stand more than once among rows that nothing else tells apart.
    """
    ids: list[pa.Array] = []
    known = real_columns(tally.variables)
    for block in blocks:
        ids.append(block.sample_id.filter(pa.array(block.row < 0)))
        parts = (block.inputs if known is None else _without_fill(block.inputs, known), block.targets)
        if all(_usable(part) for part in parts):
            yield block
            continue
        reasons = [_reasons(part) for part in parts]
        counts = np.hstack([[mask.sum(axis=0) for mask in masks] for masks in reasons])
        bad = np.any([mask.any(axis=1) for masks in reasons for mask in masks], axis=0)
        if policy == "refuse":
            raise UserError(_refusal(path, tally.variables.columns, counts, str(block.sample_id[int(np.argmax(bad))])))
        tally.bad += counts
        tally.bad_rows += int(bad.sum())
        keep = ~bad
        if keep.any():
            yield Block(block.inputs[keep], block.targets[keep], block.sample_id.filter(pa.array(keep)), block.row[keep])
    _require_unique(path, pa.chunked_array(ids, pa.string()))


def _require_unique(path: str, ids: pa.ChunkedArray) -> None:
    ids = ids.drop_null()
    if pc.count_distinct(ids).as_py() < len(ids):
        counts = ids.value_counts()
        twice = counts.filter(pc.greater(counts.field("counts"), 1))[0].as_py()["values"]
        raise UserError(f"{path}: {SAMPLE_ID} {twice} stands there more than once, expected every row once")


def real_columns(variables: VariableSet) -> np.ndarray | None:
    """bool ``(i,)``: the raw inputs in which a fill value is a reason to leave out a row; None for all of them.

    Snow over sea ice has one wherever there is no sea ice.
    """
    if SNOWHICE.name not in variables.raw:
        return None
    return ~variables.raw.mask([SNOWHICE.name])


def _without_fill(inputs: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Inputs with 0 for the fill values that are no reason to leave out a row."""
    cleaned = inputs.copy(order="K")
    own = cleaned[:, ~known]
    cleaned[:, ~known] = np.where(np.isfinite(own) & (np.abs(own) >= UNREAL), 0.0, own)
    return cleaned


def good_rows(values: np.ndarray) -> np.ndarray:
    """bool ``(n,)``: the rows of ``(n, c)`` that :func:`clean` keeps."""
    # a NaN is not less than anything
    return np.asarray((np.abs(values) < UNREAL).all(axis=1))


def usable(moments: Moments) -> bool:
    """Whether no value of raw columns with these moments is a reason to leave out a row."""
    return _within(moments.minimum, moments.maximum)


def _usable(values: np.ndarray) -> bool:
    return _within(values.min(axis=0), values.max(axis=0))


def _within(minimum: np.ndarray, maximum: np.ndarray) -> bool:
    # a NaN makes both comparisons false
    return bool(maximum.max() < UNREAL and minimum.min() > -UNREAL)


def _reasons(values: np.ndarray) -> Sequence[np.ndarray]:
    """Masks of the shape of ``values``, one for each of ``REASONS``."""
    infinite = np.isinf(values)
    return np.isnan(values), infinite, (np.abs(values) >= UNREAL) & ~infinite


def _refusal(path: str, names: Sequence[str], counts: np.ndarray, sample_id: str) -> str:
    found = [reason for reason, values in zip(REASONS, counts, strict=True) if values.any()]
    columns = [names[index] for index in np.flatnonzero(counts.any(axis=0)).tolist()]
    named = f"{', '.join(columns[:3])}{' …' if len(columns) > 3 else ''}"
    return (
        f"{path}: {' or '.join(found)} in {len(columns)} column(s), {named}, first in row {sample_id}; "
        "mend the file, or set data.bad_rows to drop"
    )


def count_inexact(block: Block, tally: Tally) -> None:
    """Count the rows in which an exact column is not what it should be."""
    exact, source = tally.variables.targets.exact, tally.variables.exact_source
    tally.inexact += (block.targets[:, exact] != -block.inputs[:, source] / STEP_SECONDS).sum(axis=0)


def scale(block: Block, transform: Transform) -> Rows:
    """A block as a network takes it: ``inputs`` float32 (n, s), ``targets`` float32 (n, t), ``row`` int64 (n,)."""
    return {
        "inputs": transform.scale_inputs(torch.from_numpy(block.inputs)).numpy(),
        "targets": transform.scale_targets(torch.from_numpy(block.targets), torch.from_numpy(block.inputs)).numpy(),
        "row": block.row,
    }


def stack(parts: Sequence[Rows]) -> Rows:
    """Several parts one after another."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if len(parts) != 1 else parts[0]


def finite(block: Block, path: str, bad_rows: str, variables: VariableSet) -> Block:
    """The rows of a block whose inputs are finite: fewer where others are to ``drop``.

    Targets are not looked at, so that every row that :func:`leapray.data.clean.clean` keeps is among them. Raises UserError for others
    under ``refuse``.
    """
    # a sum of finite numbers may overflow, but one of others is never finite
    if np.isfinite(block.inputs.sum()):
        return block
    good = np.isfinite(block.inputs).all(axis=1)
    if good.all():
        return block
    if bad_rows == "refuse":
        require_finite(block.inputs, block.sample_id, variables.raw.columns, path)
    return Block(np.asfortranarray(block.inputs[good]), block.targets[good], block.sample_id.filter(pa.array(good)), block.row[good])
