"""The bytes of a row in each format."""

from __future__ import annotations

from leapray.climsim.schema import INPUTS, LEVELS, MLI_VARIABLES, MLO_VARIABLES, TARGETS

NETCDF_ROW_BYTES = 8 * sum(variable.levels for variable in (*MLI_VARIABLES, *MLO_VARIABLES))
"""One column of one pair: float64, not compressed."""
FLAT_ROW_BYTES = 8 * (INPUTS.width + TARGETS.width)
"""A row of flat parquet before compression: float64."""


def shard_row_bytes(features: int) -> int:
    """A row of a shard: inputs, features and targets as float32, and its int64 key."""
    return 4 * (INPUTS.width + LEVELS * features + TARGETS.width) + 8
