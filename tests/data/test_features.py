import re

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from leapray.climsim.grid import figures, pressure
from leapray.climsim.schema import LEVELS, V2_RH
from leapray.data.column import Column, ColumnOf
from leapray.data.features import FEATURES, TRACE, EngineeredFeatures, check_features
from leapray.errors import UserError
from tests.columns import INPUTS
from tests.data.humidity_by_hand import saturation

T, Q1, Q2, Q3, U, V = (INPUTS[f"state_{name}"] for name in ("t", "q0001", "q0002", "q0003", "u", "v"))
OZONE, CH4, N2O = (INPUTS[f"pbuf_{name}"] for name in ("ozone", "CH4", "N2O"))
PS = INPUTS["state_ps"].start
FINITE = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([0.0, -0.0, 1e-300, -1e-300, 5e-324, 1e-51, -1e-20, 1e308, -1e308]),
)


def column(**values: float) -> np.ndarray:
    """One row of 556 zeros but for the named variables, level 59 twice as large as the others."""
    x = np.zeros((1, INPUTS.width))
    for name, value in values.items():
        x[0, INPUTS[name]] = value
        x[0, INPUTS[name].stop - 1] = 2 * value
    return x


def compute(name: str, x: np.ndarray) -> np.ndarray:
    return EngineeredFeatures([name], INPUTS)(torch.from_numpy(x))[0].numpy()


def test_features_equal_numpy_by_hand():
    rng = np.random.default_rng(0)
    x = rng.uniform(1e-6, 1, (7, INPUTS.width))
    x[:, U.start : V.stop] -= 0.5
    x[:, T] += 250
    x[:, PS] += 1e5

    def differences(of: slice) -> np.ndarray:
        return np.concatenate([-np.diff(x[:, of], axis=1), np.zeros((7, 1))], axis=1)

    wind = x[:, U] ** 2 + x[:, V] ** 2
    expected = {
        "temperature_difference": differences(T),
        "humidity_difference": differences(Q1),
        "u_difference": differences(U),
        "v_difference": differences(V),
        "temperature_humidity_ratio": x[:, T] / x[:, Q1],
        "air_total": x[:, OZONE] + x[:, CH4] + x[:, N2O],
        "moisture_transport": x[:, Q1] * wind,
        "moisture_transport_reference": x[:, Q1] ** 2 * wind,
        "liquid_partition": x[:, Q2] / (x[:, Q2] + x[:, Q3]),
        "condensate_imbalance": (x[:, Q2] - x[:, Q3]) / (x[:, Q2] + x[:, Q3]),
        "relative_humidity": x[:, Q1] / np.vectorize(saturation)(x[:, T], pressure(x[:, PS])),
    }
    assert set(expected) == set(FEATURES)
    for name, values in expected.items():
        np.testing.assert_allclose(compute(name, x), values, rtol=1e-13, atol=1e-16)


@pytest.mark.parametrize("name", ["temperature_difference", "humidity_difference", "u_difference", "v_difference"])
def test_a_difference_ends_at_the_last_level_and_never_meets_the_next_variable(name):
    variable = {"temperature": "state_t", "humidity": "state_q0001", "u": "state_u", "v": "state_v"}[name.removesuffix("_difference")]
    x = np.full((1, INPUTS.width), 1e9)
    x[0, INPUTS[variable]] = np.arange(60.0)
    assert compute(name, x).tolist() == [[-1.0] * 59 + [0.0]]


@pytest.mark.parametrize(
    ("liquid", "ice", "partition", "imbalance"),
    [
        (3e-5, 1e-5, 0.75, 0.5),
        (1e-12, 0.0, 1.0, 1.0),
        (0.0, 1e-12, 0.0, -1.0),
        (0.0, 0.0, 0.0, 0.0),
        (3e-30, 1e-30, 0.75, 0.5),
        (2e-35, 0.0, 1.0, 1.0),
        (4e-36, 0.0, 0.0, 0.0),
        (1e-51, 0.0, 0.0, 0.0),
        (5e-324, 5e-324, 0.0, 0.0),
        (-1e-9, 1e-9, 0.0, -1.0),
        (1.0, -1.0, 1.0, 1.0),
    ],
)
def test_the_phase_of_condensate(liquid, ice, partition, imbalance):
    x = column(state_q0002=liquid, state_q0003=ice)
    np.testing.assert_allclose(compute("liquid_partition", x), partition, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(compute("condensate_imbalance", x), imbalance, rtol=1e-12, atol=1e-15)
    names = ["liquid_partition", "condensate_imbalance"]
    for scripted, expected in zip(
        torch.jit.script(EngineeredFeatures(names, INPUTS))(torch.from_numpy(x)), (partition, imbalance), strict=True
    ):
        np.testing.assert_allclose(scripted.numpy(), expected, rtol=1e-12, atol=1e-15)


@settings(deadline=None)
@given(st.floats(-60, -4), st.floats(-60, -4))
def test_the_phase_in_float32_is_that_in_float64(liquid: float, ice: float):
    x = column(state_q0002=10.0**liquid, state_q0003=10.0**ice)
    # as on a host that flushes what is below the smallest normal number
    coarse = np.where(np.abs(x.astype(np.float32)) < np.finfo(np.float32).tiny, 0, x.astype(np.float32)).astype(np.float64)
    # on the threshold itself rounding decides
    assume(all(abs(level * 10.0**water - TRACE) > 1e-6 * TRACE for level in (1, 2) for water in (liquid, ice)))
    for name in ("liquid_partition", "condensate_imbalance"):
        assert np.abs(compute(name, x) - compute(name, coarse)).max() < 0.01


@pytest.mark.parametrize("q1", [0.0, -1e-3, 1e-300, 1e-12])
def test_temperature_over_hardly_any_humidity_is_bounded(q1):
    assert compute("temperature_humidity_ratio", column(state_t=250.0, state_q0001=q1))[0, 0] == 250.0 / 1e-7


def test_the_guard_of_the_ratio_lies_below_the_stratospheres_humidity():
    lowest = [float(value) for value in figures("low_res_columns")["min"][Q1]]
    assert min(lowest[:12]) > 1e-7


@settings(deadline=None)
@given(arrays(np.float64, (1, 9), elements=FINITE), arrays(np.float64, (1, 9), elements=FINITE))
def test_every_feature_of_finite_columns_is_finite(even: np.ndarray, odd: np.ndarray):
    x = np.zeros((1, INPUTS.width))
    for index, variable in enumerate((T, Q1, Q2, Q3, U, V, OZONE, CH4, N2O)):
        x[:, variable][:, ::2], x[:, variable][:, 1::2] = even[:, index], odd[:, index]
    for name, values in zip(FEATURES, EngineeredFeatures(list(FEATURES), INPUTS)(torch.from_numpy(x)), strict=True):
        assert values.shape == (1, LEVELS)
        assert values.isfinite().all(), name
        if name == "liquid_partition":
            assert ((values >= 0) & (values <= 1)).all()
        if name == "condensate_imbalance":
            assert (values.abs() <= 1).all()


def test_features_come_in_the_order_asked_for_and_script_to_the_same_numbers():
    x = torch.rand(4, INPUTS.width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    names = ["air_total", "liquid_partition", "u_difference"]
    features = EngineeredFeatures(names, INPUTS)
    found, scripted = features(x), torch.jit.script(features)(x)
    for name, values, again in zip(names, found, scripted, strict=True):
        np.testing.assert_array_equal(values.numpy(), compute(name, x.numpy()))
        assert torch.equal(values, again)


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (
            ["liquid_parttion"],
            "data.features: unknown feature 'liquid_parttion'; did you mean 'liquid_partition'? known ones are temperature_",
        ),
        (["xyz"], "data.features: unknown feature 'xyz'; known ones are temperature_difference, humidity_difference, "),
        (["air_total", "air_total"], "data.features: 'air_total' is given more than once, expected every feature once"),
    ],
)
def test_a_wrong_feature_is_named(names, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        check_features(names)


def test_any_subset_in_any_order_is_taken():
    assert check_features([]) == ()
    assert check_features(["v_difference", "air_total"]) == ("v_difference", "air_total")


def test_each_field_of_a_column_is_its_variable():
    x = torch.arange(V2_RH.raw.width, dtype=torch.float64)[None]
    column = ColumnOf(V2_RH.raw, [])(x)
    named = {"ch4": "pbuf_CH4", "n2o": "pbuf_N2O", "ozone": "pbuf_ozone"} | {f"q{n}": f"state_q000{n}" for n in (1, 2, 3)}
    for field in set(Column._fields) - {"pressure", "rh"}:
        (variable,) = [
            name for name in V2_RH.raw.names if name == named.get(field) or name.partition("_")[2].removeprefix("in_").lower() == field
        ]
        assert getattr(column, field)[0].tolist() == x[0, V2_RH.raw[variable]].tolist(), field
