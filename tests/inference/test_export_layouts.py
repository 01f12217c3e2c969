import numpy as np
import pytest
import torch

from leapray.climsim.grid import figures, pressure
from leapray.errors import UserError
from leapray.inference.export.layouts import HOST_LAYOUTS, HostInputs, host_layout
from tests.columns import INPUTS
from tests.data.humidity_by_hand import saturation

Q1 = INPUTS["state_q0001"]


@pytest.fixture
def columns() -> np.ndarray:
    """Flat columns between the recorded extremes of low-res, water spread over its magnitudes."""
    table = {key: np.array(figures("low_res_columns")[key][: INPUTS.width], dtype=np.float64) for key in ("mean", "std", "min", "max")}
    rng = np.random.default_rng(0)
    x = np.clip(table["mean"] + table["std"] * rng.normal(size=(50, INPUTS.width)), table["min"], table["max"])
    low, high = table["min"][Q1], table["max"][Q1]
    x[:, Q1] = np.exp(rng.uniform(np.log(low), np.log(high), (50, 60)))
    return x


def by_hand(x: np.ndarray) -> np.ndarray:
    """v2_rh from flat columns, place by place."""
    host = np.full((len(x), 557), 1e30)
    host[:, 0:60] = x[:, 0:60]
    p = pressure(x[:, 360])
    host[:, 60:120] = [[x[r, 60 + k] / saturation(x[r, k], p[r, k]) for k in range(60)] for r in range(len(x))]
    host[:, 120:360] = x[:, 120:360]
    host[:, 360:540] = x[:, 376:556]
    host[:, 540:555] = x[:, 360:375]
    host[:, 556] = x[:, 375]
    return host


def test_v2_rh_has_the_order_that_the_host_passes():
    inputs = HOST_LAYOUTS["v2_rh557"].inputs
    assert inputs.width == 557
    starts = {variable.name: inputs[variable.name].start for variable in inputs.variables}
    profiles = ["state_t", "state_rh", "state_q0002", "state_q0003", "state_u", "state_v", "pbuf_ozone", "pbuf_CH4", "pbuf_N2O"]
    assert [starts[name] for name in profiles] == list(range(0, 540, 60))
    assert {name: starts[name] for name in ("state_ps", "cam_in_OCNFRAC", "cam_in_SNOWHICE", "cam_in_SNOWHLAND")} == {
        "state_ps": 540,
        "cam_in_OCNFRAC": 554,
        "cam_in_SNOWHICE": 555,
        "cam_in_SNOWHLAND": 556,
    }


def test_flat_columns_come_back_from_v2_rh(columns):
    found = HostInputs(HOST_LAYOUTS["v2_rh557"], INPUTS)(
        torch.from_numpy(by_hand(columns)), torch.zeros(INPUTS.width, dtype=torch.float64)
    ).numpy()
    others = np.delete(np.arange(INPUTS.width), np.arange(Q1.start, Q1.stop))
    assert (found[:, others] == columns[:, others]).all()
    np.testing.assert_allclose(found[:, Q1], columns[:, Q1], rtol=1e-11)


def test_v2_rh_of_columns_is_inverted_to_the_last_digits(columns):
    layout, x = HostInputs(HOST_LAYOUTS["v2_rh557"], INPUTS), torch.from_numpy(columns)
    host = layout.of_columns(x)
    np.testing.assert_allclose(host, by_hand(columns), rtol=1e-11)
    np.testing.assert_allclose(layout(host, torch.zeros(INPUTS.width)), columns, rtol=1e-12)
    assert (x.numpy() == columns).all()


@pytest.mark.parametrize("name", HOST_LAYOUTS)
def test_what_is_not_finite_is_substituted_and_nothing_else_changes(name, columns):
    layout = HOST_LAYOUTS[name].to_columns()
    substitute = torch.from_numpy(columns[7])
    x = layout.of_columns(torch.from_numpy(columns[:4]))
    good = layout(x, substitute)
    bad = x.clone()
    bad[0, 3], bad[1, 70], bad[2, 130], bad[3, 200] = torch.nan, torch.inf, -torch.inf, torch.nan
    before = bad.clone()
    found = layout(bad, substitute)
    assert torch.equal(bad.nan_to_num(), before.nan_to_num())
    expected = good.clone()
    for row, place in enumerate((3, 70, 130, 200)):
        expected[row, place] = substitute[place]
    if name == "v2_rh557":
        # the relative humidity that was passed with a missing temperature is taken at the substitute
        p = pressure(columns[:1, 360])[0, 3]
        expected[0, 63] = float(x[0, 63]) * saturation(columns[7, 3], p)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=0)


def test_a_missing_surface_pressure_leaves_the_humidity_at_the_substitute_pressure(columns):
    layout, substitute = HostInputs(HOST_LAYOUTS["v2_rh557"], INPUTS), torch.from_numpy(columns[7])
    x = layout.of_columns(torch.from_numpy(columns[:1]))
    x[0, 540] = torch.nan
    found = layout(x, substitute)[0].numpy()
    p = pressure(columns[7:8, 360])[0]
    expected = [float(x[0, 60 + k]) * saturation(columns[0, k], p[k]) for k in range(60)]
    np.testing.assert_allclose(found[Q1], expected, rtol=1e-11)
    assert found[360] == columns[7, 360]


@pytest.mark.parametrize("value", [0.0, 1e30, float("nan"), float("inf")])
def test_snow_on_ice_is_not_used(value, columns):
    layout, substitute = HostInputs(HOST_LAYOUTS["v2_rh557"], INPUTS), torch.zeros(INPUTS.width, dtype=torch.float64)
    x = layout.of_columns(torch.from_numpy(columns))
    other = x.clone()
    other[:, 555] = value
    assert torch.equal(layout(other, substitute), layout(x, substitute))


def test_an_unknown_layout_is_refused():
    with pytest.raises(UserError, match="--layout is 'v4'; known ones are kaggle556, v2_rh557"):
        host_layout("v4")
