"""Rows that can be predicted: those whose inputs are finite numbers."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from leapray.climsim.schema import VariableSet
from leapray.data.flat import Block
from leapray.evaluation.tables import require_finite


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
