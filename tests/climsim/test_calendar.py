import pytest
from hypothesis import given
from hypothesis import strategies as st

from leapray.climsim.calendar import FIRST_MONTH, Moment, Month, file_name, month_of_step, month_range, parse_file_name
from leapray.errors import UserError


def test_known_moments() -> None:
    assert FIRST_MONTH.first_step == 0
    assert file_name("mli", 0) == "E3SM-MMF.mli.0001-02-01-00000.nc"
    assert file_name("mlo", 71) == "E3SM-MMF.mlo.0001-02-01-85200.nc"
    assert Moment.of_step(0).ymd == 10201
    # eight years from 0001-02 hold the 210 240 steps of the published data
    assert Month(9, 2).first_step == 210_240
    assert sum(month.steps for month in month_range(Month(1, 2), Month(8, 2))) == 183_960


@given(st.integers(0, 300_000))
def test_a_file_name_tells_its_step(step: int) -> None:
    assert parse_file_name(f"some/where/{file_name('mlo', step)}") == ("mlo", step)


@given(st.integers(0, 300_000))
def test_a_step_lies_in_its_month(step: int) -> None:
    month = month_of_step(step)
    assert month.first_step <= step < month.first_step + month.steps
    assert (month + 1).first_step == month.first_step + month.steps


@pytest.mark.parametrize(
    "name", ["E3SM-MMF.mli.0001-02-30-00000.nc", "E3SM-MMF.mli.0001-02-01-00600.nc", "E3SM-MMF.mlx.0001-02-01-00000.nc", "readme.txt"]
)
def test_other_names_are_no_steps(name: str) -> None:
    assert parse_file_name(name) is None


@pytest.mark.parametrize("text", ["1-2", "0001-00", "0001-13", "0000-01", "0001/02"])
def test_a_wrong_month_is_named(text: str) -> None:
    with pytest.raises(UserError, match=f"month '{text}'"):
        Month.parse(text)
