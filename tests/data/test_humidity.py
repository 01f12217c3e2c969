import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from leapray.data.humidity import SaturationHumidity
from tests.data.humidity_by_hand import saturation

TEMPERATURES, PRESSURES = st.floats(100.0, 350.0), st.floats(5.0, 110_000.0)


def found(t: float, p: float) -> float:
    return float(SaturationHumidity()(torch.tensor([t], dtype=torch.float64), torch.tensor([p], dtype=torch.float64)))


@given(t=TEMPERATURES, p=PRESSURES)
def test_saturation_is_the_definition_case_by_case(t, p):
    assert found(t, p) == pytest.approx(saturation(t, p), rel=1e-11)


@pytest.mark.parametrize("t", [185.0, 253.16, 273.15, 273.16])
def test_every_edge_belongs_to_the_side_that_the_definition_says(t):
    for near in (np.nextafter(t, 0), t, np.nextafter(t, 999)):
        assert found(near, 5e4) == pytest.approx(saturation(near, 5e4), rel=1e-11)


@pytest.mark.parametrize(("t", "pascal"), [(300.0, 3536.8), (273.16, 611.657), (250.0, 76.02), (200.0, 0.16255)])
def test_saturation_is_near_the_laboratory(t, pascal):
    # Murphy and Koop (2005): over liquid from the triple point on, over ice below 253.16 K
    assert found(t, 1e5) * 1e5 * 461 / 287 == pytest.approx(pascal, rel=0.02)


@given(t=TEMPERATURES, p=PRESSURES, q1=st.floats(1e-12, 0.05))
def test_humidity_comes_back_from_relative_humidity(t, p, q1):
    relative = q1 / saturation(t, p)
    assert relative * found(t, p) == pytest.approx(q1, rel=1e-11)
    own = found(t, p)
    assert (q1 / own) * own == pytest.approx(q1, rel=1e-12)


def test_it_is_the_same_in_torchscript():
    t, p = torch.linspace(100, 350, 999, dtype=torch.float64), torch.linspace(5, 1e5, 999, dtype=torch.float64)
    scripted = torch.jit.script(SaturationHumidity())
    torch.testing.assert_close(scripted(t, p), SaturationHumidity()(t, p), rtol=1e-14, atol=0)
