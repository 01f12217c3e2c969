from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leapray.data.flat import Block
from leapray.errors import UserError
from leapray.inference.ensemble.files import PartReader
from leapray.inference.parts import part, part_writer
from tests.columns import INPUTS, TARGETS


def write(directory: Path, row: np.ndarray, values: np.ndarray, block: int = 4) -> str:
    """A part file in row groups of ``block`` rows."""
    with part_writer(str(directory), 0, TARGETS) as writer:
        for start in range(0, len(row), block):
            keys = row[start : start + block]
            ids = pa.array([f"id_{key}" for key in keys])
            empty = np.empty((len(keys), INPUTS.width))
            writer(Block(empty, empty, ids, keys), values[start : start + block], ())
    return part(str(directory), 0)


def targets(rows: int) -> np.ndarray:
    return np.arange(rows * TARGETS.width, dtype=np.float64).reshape(rows, -1)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(-50, 50), unique=True, min_size=1, max_size=20), st.data())
def test_rows_are_taken_by_their_keys_in_the_order_of_the_part(tmp_path_factory: pytest.TempPathFactory, keys: list[int], data) -> None:
    values = targets(len(keys))
    reader = PartReader(write(tmp_path_factory.mktemp("part"), np.array(keys), values), TARGETS)
    wanted = sorted(data.draw(st.sets(st.integers(0, len(keys) - 1))))
    cut = data.draw(st.integers(0, len(wanted)))
    for some in (wanted[:cut], wanted[cut:]):
        np.testing.assert_array_equal(reader.take(np.array(keys)[some]), values[some])


def test_a_row_that_a_part_lacks_is_told_by_its_key(tmp_path: Path) -> None:
    reader = PartReader(write(tmp_path, np.arange(10), targets(10)), TARGETS)
    reader.take(np.arange(8))
    with pytest.raises(UserError, match=r"part-000000.parquet: lacks 2 rows of the input, the first with key 77"):
        reader.take(np.array([8, 77, 78]))


def test_predictions_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    values = targets(6)
    values[4, 100] = np.nan
    reader = PartReader(write(tmp_path, np.arange(6), values), TARGETS)
    reader.take(np.arange(4))
    with pytest.raises(UserError, match="holds NaN or Inf"):
        reader.take(np.array([4]))


def test_a_part_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"part-000003\.parquet"):
        PartReader(part(str(tmp_path), 3), TARGETS).take(np.array([1]))
