"""Small tables of sample_id and the 368 targets, for the tests of scoring and submitting."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from tests.columns import TARGETS


def write_targets(path: Path, ids: Sequence[str], values: np.ndarray, columns: Sequence[str] = TARGETS.columns) -> str:
    """Write ids and values, whose columns are named in order, as csv or parquet by suffix."""
    table = pa.table([pa.array(ids, pa.string()), *(pa.array(column) for column in values.T)], names=["sample_id", *columns])
    if path.suffix == ".csv":
        pyarrow.csv.write_csv(table, path)
    else:
        pq.write_table(table, path)
    return str(path)
