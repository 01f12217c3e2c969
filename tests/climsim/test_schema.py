import csv
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

import leapray.climsim
from leapray.climsim.row_keys import KINDS, row_key, row_place
from tests.columns import ABLATED, EXACT, EXACT_SOURCE, INPUTS, LEARNED, SCORED, TARGETS

FIGURES = Path(leapray.climsim.__file__).parent / "figures"


def published() -> list[dict[str, str]]:
    with (FIGURES / "low_res_columns.csv").open() as file:
        return list(csv.DictReader(file))


def test_columns_stand_in_the_published_order() -> None:
    rows = published()
    assert [row["column"] for row in rows if row["kind"] == "input"] == list(INPUTS.columns)
    assert [row["column"] for row in rows if row["kind"] == "target"] == list(TARGETS.columns)
    assert (INPUTS.width, TARGETS.width) == (556, 368)


def test_ablated_columns_are_those_of_published_weight_zero() -> None:
    weights = [int(row["new_submission_weight"]) for row in published() if row["kind"] == "target"]
    np.testing.assert_array_equal(SCORED, np.array(weights) == 1)


def test_masks_count_as_the_competition_does() -> None:
    assert (ABLATED.sum(), EXACT.sum(), SCORED.sum(), LEARNED.sum()) == (60, 15, 308, 293)
    assert np.array(TARGETS.columns)[EXACT].tolist() == [f"ptend_q0002_{level}" for level in range(12, 27)]
    assert np.array(INPUTS.columns)[EXACT_SOURCE].tolist() == [f"state_q0002_{level}" for level in range(12, 27)]


def test_slices_and_units_follow_the_columns() -> None:
    assert INPUTS.columns[INPUTS["pbuf_ozone"]] == tuple(f"pbuf_ozone_{level}" for level in range(60))
    assert INPUTS.columns[INPUTS["state_ps"]] == ("state_ps",)
    assert TARGETS.units[TARGETS["ptend_q0003"].start] == "kg/kg/s"


@given(st.sampled_from(sorted(KINDS)), st.integers(0, 2**32 - 1), st.integers(0, 2**24 - 1))
def test_a_row_key_leads_back_to_its_place(kind: str, step: int, ncol: int) -> None:
    code, back_step, back_ncol = row_place(row_key(kind, np.array([step]), np.array([ncol])))
    assert (int(code[0]), int(back_step[0]), int(back_ncol[0])) == (KINDS[kind].code, step, ncol)
