import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leapray.console import digits


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
