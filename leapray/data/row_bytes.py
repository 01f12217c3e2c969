"""The bytes of a row in each format."""

from __future__ import annotations

from leapray.climsim.schema import MLI_VARIABLES, MLO_VARIABLES, Channels, VariableSet

NETCDF_ROW_BYTES = 8 * sum(variable.levels for variable in (*MLI_VARIABLES, *MLO_VARIABLES))
"""One column of one pair: float64, not compressed."""


def flat_row_bytes(variables: VariableSet) -> int:
    """A row of flat parquet before compression: float64."""
    return 8 * (variables.raw.width + variables.targets.width)


def shard_row_bytes(channels: Channels) -> int:
    """A row of a shard: inputs, features and targets as float32, and its int64 key."""
    return 4 * (channels.inputs.width + channels.targets.width) + 8
