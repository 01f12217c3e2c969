"""Rows that cannot be used: refused by name, or dropped and counted by column and reason."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest

from leapray.climsim.schema import KAGGLE, MISSING
from leapray.data.clean import Tally, clean, count_inexact
from leapray.data.flat import Block
from leapray.errors import UserError
from tests.columns import EXACT, INPUTS, TARGETS
from tests.samples import random_rows


def blocks(*sizes: int, row: int = 0, ids: list[str] | None = None) -> Iterator[Block]:
    start = 0
    for size in sizes:
        rows = np.asfortranarray(random_rows(size, start))
        names = ids[start : start + size] if ids else [f"row_{start + index}" for index in range(size)]
        key = np.arange(start, start + size) if row >= 0 else -1 - np.arange(start, start + size)
        yield Block(rows[:, : INPUTS.width], rows[:, INPUTS.width :], pa.array(names), key)
        start += size


def spoilt() -> list[Block]:
    first, second = blocks(5, 4)
    first.inputs[1, 3] = np.nan
    first.inputs[1, 7] = -np.inf
    first.targets[4, 0] = MISSING
    second.targets[2, 0] = -1e20
    return [first, second]


def test_good_rows_pass_as_they_are() -> None:
    tally = Tally.empty()
    given = list(blocks(5, 4))
    assert [block is before for block, before in zip(clean(given, "f", "refuse", tally), given, strict=True)] == [True, True]
    assert (tally.bad_rows, tally.dropped()) == (0, {})


def test_bad_rows_are_dropped_and_counted_by_column_and_reason() -> None:
    tally = Tally.empty()
    kept = list(clean(spoilt(), "f", "drop", tally))
    assert [block.row.tolist() for block in kept] == [[0, 2, 3], [5, 6, 8]]
    assert [block.sample_id.to_pylist() for block in kept] == [["row_0", "row_2", "row_3"], ["row_5", "row_6", "row_8"]]
    assert tally.bad_rows == 3
    assert tally.dropped() == {
        INPUTS.columns[3]: {"NaN": 1},
        INPUTS.columns[7]: {"Inf": 1},
        TARGETS.columns[0]: {"fill value": 2},
    }
    again = Tally.from_dict(tally.to_dict(), KAGGLE)
    again.add(tally)
    assert (again.bad_rows, again.dropped()[TARGETS.columns[0]]) == (6, {"fill value": 4})


def test_a_block_of_bad_rows_alone_gives_nothing() -> None:
    (block,) = blocks(3)
    block.inputs[:, 0] = np.nan
    assert list(clean([block], "f", "drop", Tally.empty())) == []


def test_bad_rows_are_refused_with_file_columns_and_the_first_row() -> None:
    sentence = r"f\.parquet: NaN or Inf or fill value in 3 column\(s\), state_t_3, state_t_7, ptend_t_0, first in row row_1;"
    with pytest.raises(UserError, match=sentence):
        list(clean(spoilt(), "f.parquet", "refuse", Tally.empty()))


def test_ids_that_stand_twice_are_refused_where_nothing_else_tells_rows_apart() -> None:
    ids = ["train_0", "train_1", "train_2", "train_1"]
    with pytest.raises(UserError, match=r"f\.parquet: sample_id train_1 stands there more than once"):
        list(clean(blocks(2, 2, row=-1, ids=ids), "f.parquet", "drop", Tally.empty()))
    assert len(list(clean(blocks(2, 2, ids=ids), "f.parquet", "drop", Tally.empty()))) == 2


def test_exact_columns_that_are_not_exact_are_counted() -> None:
    (block,) = blocks(6)
    tally = Tally.empty()
    count_inexact(block, tally)
    assert tally.inexact_rows() == {}
    last = np.flatnonzero(EXACT)[-1]
    block.targets[:4, last] *= 1 + 1e-12
    count_inexact(block, tally)
    assert tally.inexact_rows() == {TARGETS.columns[last]: 4}
