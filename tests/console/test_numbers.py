import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leapray.console import counted, digits, duration, scaled


@pytest.mark.parametrize(
    ("value", "sign", "shown"),
    [
        (0.28, "", "0.280"),
        (0.28, "+", "+0.280"),
        (-0.0123456, "", "-0.0123"),
        (0.9996, "", "1.00"),
        (12.345, "", "12.3"),
        (1234.5, "", "1234"),
        (0.0, "", "0"),
        (-24266603755710400.0, "", "-2.43e+16"),
        (8.6e13, "+", "+8.60e+13"),
        (1.5e-7, "", "1.50e-07"),
        (math.nan, "", ""),
        (-math.inf, "", "-inf"),
        (None, "+", ""),
    ],
)
def test_numbers_by_hand(value: float | None, sign: str, shown: str) -> None:
    assert digits(value, sign) == shown


@given(st.floats(-1e300, 1e300, allow_subnormal=False))
def test_a_number_has_three_significant_digits_and_few_letters(value: float) -> None:
    shown = digits(value)
    assert len(shown) <= len("-1.23e+100")
    assert math.isclose(float(shown), value, rel_tol=5.001e-3)


@pytest.mark.parametrize(
    ("value", "shown"), [(0, "0 B"), (12, "12 B"), (999.4, "999 B"), (999.6, "1.00 kB"), (47_368, "47.4 kB"), (596.4e9, "596 GB")]
)
def test_bytes_have_a_decimal_prefix(value: float, shown: str) -> None:
    assert scaled(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (0.45, "0.450"),
        (8, "8"),
        (35_320, "35,300"),
        (999_600, "1.00 million"),
        (70_640_640, "70.6 million"),
        (4.54e9, "4.54 billion"),
    ],
)
def test_counts_have_three_digits(value: float, shown: str) -> None:
    assert counted(value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (1e-4, "under 1 ms"),
        (0.00686, "6.86 ms"),
        (1, "1.00 s"),
        (119, "119 s"),
        (1500, "25.0 min"),
        (49_000, "13.6 h"),
        (392_000, "4.54 days"),
    ],
)
def test_durations_have_the_unit_that_suits_them(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown
