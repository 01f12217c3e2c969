import json
from functools import lru_cache
from importlib.resources import files

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leapray.climsim.grid import figures
from leapray.climsim.schema import KAGGLE, LEVELS
from leapray.data.features import FEATURES
from leapray.data.fitting import LOG_VARIABLES, Fitting
from leapray.data.moments import Moments
from leapray.data.scaling import ColumnScaling, exp_columns, log_columns
from leapray.data.statistics import transform_from_statistics
from leapray.data.transform import Transform, departure_candidates
from leapray.errors import UserError
from leapray.recipe import Choice
from tests.columns import INPUTS, TARGETS

LOW_RES = str(files("leapray.climsim") / "figures" / "low_res_columns.csv")
TABLES = ("low_res_columns", "high_res_columns")
NO_INPUTS = torch.zeros(1, INPUTS.width, dtype=torch.float64)
MODES = ("standard", "reference", "log-per-variable")
FLAT = INPUTS.width + TARGETS.width
FEW = ("liquid_partition", "temperature_difference")


@pytest.fixture(scope="module")
def real() -> Transform:
    """Fitted on the real low-res statistics: columns from 1e-51 to 1e5, with their true extremes."""
    return transform_from_statistics(LOW_RES, KAGGLE, Choice(name="standard"), ())


def extremes(table: str) -> torch.Tensor:
    """Least and greatest value of every input in a table, ``(2, 556)``."""
    values = figures(table)
    return torch.tensor([[float(v) for v in values[key][: INPUTS.width]] for key in ("min", "max")], dtype=torch.float64)


def rows(count: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets over each column's real low-res range, condensate over many orders of magnitude."""
    rng = np.random.default_rng(seed)
    low, high = extremes("low_res_columns").numpy()
    inputs = low + (high - low) * rng.uniform(size=(count, INPUTS.width))
    for name in ("state_q0002", "state_q0003"):
        inputs[:, INPUTS[name]] = 10.0 ** rng.uniform(-51, -4, (count, LEVELS))
    std = np.array([float(v) for v in figures("low_res_columns")["std"][INPUTS.width :]])
    return inputs, rng.normal(size=(count, TARGETS.width)) * std


@lru_cache
def fitted(mode: str, features: tuple[str, ...] = FEW) -> Transform:
    fitting = Fitting(KAGGLE, Choice(name=mode), features)
    return fitting.fit(Moments.of(fitting.columns(*rows())), {"rows": 400})


def masked(transform: Transform) -> list[str]:
    return [column for column, flag in zip(INPUTS.columns, transform.inputs.constant.tolist(), strict=True) if flag]


def test_66_constant_gas_columns_and_cloud_liquid_that_float32_cannot_hold_are_masked(real: Transform) -> None:
    gases = [f"pbuf_{gas}_{level}" for gas in ("CH4", "N2O") for level in range(27, 60)]
    assert masked(real) == [f"state_q0002_{level}" for level in range(12, 18)] + gases


@pytest.mark.parametrize("table", TABLES)
def test_real_extremes_scale_to_bounded_finite_values_and_keep_their_order(real: Transform, table: str) -> None:
    low, high = real.scale_inputs(extremes(table))
    assert torch.isfinite(low).all()
    assert torch.isfinite(high).all()
    assert max(low.abs().max(), high.abs().max()) < 80
    varying = ~torch.isclose(*extremes(table), rtol=1e-10, atol=0)
    assert ((high > low) | ~varying | real.inputs.constant).all()


def test_gases_that_vary_in_high_res_only_stay_masked(real: Transform) -> None:
    scaled = real.scale_inputs(extremes("high_res_columns"))
    assert (scaled[:, real.inputs.constant] == 0).all()


@pytest.mark.parametrize("table", TABLES)
def test_log_per_variable_clips_no_recorded_extreme(table: str) -> None:
    clipped, unclipped = (Fitting(KAGGLE, Choice(name="log-per-variable", options=options), ()) for options in ({}, {"clip": None}))
    moments = Moments.of(clipped.columns(*rows()))
    # moments of a logarithm are recorded nowhere: those columns keep the ones of the drawn rows
    width = clipped.width
    known = np.pad(~np.append(INPUTS.mask(LOG_VARIABLES), np.zeros(TARGETS.width, bool)), (0, width - FLAT))
    mean, std = (np.pad([float(v) for v in figures("low_res_columns")[key]], (0, width - FLAT)) for key in ("mean", "std"))
    mean, m2 = np.where(known, mean, moments.mean), np.where(known, moments.count * std**2, moments.m2)
    real = Moments(moments.count, mean, m2, moments.minimum, moments.maximum)
    assert torch.equal(*(fitting.fit(real, {}).scale_inputs(extremes(table)) for fitting in (clipped, unclipped)))


def test_scaling_equals_numpy_by_hand(real: Transform) -> None:
    table = figures("low_res_columns")
    mean, std = (np.array([float(v) for v in table[key][: INPUTS.width]]) for key in ("mean", "std"))
    x = mean + std * np.random.default_rng(0).normal(size=(50, INPUTS.width)) * 40
    z = (x - mean) / std
    z[:, real.inputs.constant.numpy()] = 0
    expected = np.where(np.abs(z) <= 30, z, np.sign(z) * (30 + np.log(1 + np.maximum(np.abs(z) - 30, 0))))
    np.testing.assert_allclose(real.inputs(torch.from_numpy(x)).numpy(), expected, rtol=1e-12, atol=1e-12)


def test_log_per_variable_equals_numpy_by_hand() -> None:
    inputs, targets = rows()
    transform = fitted("log-per-variable", ())
    z = np.empty_like(inputs)
    for variable in INPUTS.variables:
        values = inputs[:, INPUTS[variable.name]]
        if variable.name in LOG_VARIABLES:
            values = np.log(values + 1e-7)
        z[:, INPUTS[variable.name]] = (values - values.mean()) / (values.std() + 1e-10)
    np.testing.assert_allclose(transform.inputs(torch.from_numpy(inputs)).numpy(), z, rtol=1e-8, atol=1e-8)
    assert not transform.inputs.constant.any()
    y = (targets - targets.mean(axis=0)) / np.where(targets.std(axis=0) > 0, targets.std(axis=0), 1)
    np.testing.assert_allclose(transform.targets(torch.from_numpy(targets)).numpy(), y, rtol=1e-9, atol=1e-9)


def test_a_constant_scalar_is_masked_by_log_per_variable() -> None:
    inputs, targets = rows()
    inputs[:, INPUTS["cam_in_LANDFRAC"]] = 0.25
    fitting = Fitting(KAGGLE, Choice(name="log-per-variable"), ())
    transform = fitting.fit(Moments.of(fitting.columns(inputs, targets)), {})
    assert transform.inputs.constant.nonzero().flatten().tolist() == [INPUTS["cam_in_LANDFRAC"].start]


@pytest.mark.parametrize("mode", MODES)
def test_raw_columns_come_first_and_then_the_features_in_the_recipes_order(mode: str) -> None:
    inputs, _ = rows(20, seed=1)
    x = torch.from_numpy(inputs)
    plain, both = fitted(mode, ()).scale_inputs(x), fitted(mode).scale_inputs(x)
    assert fitted(mode).features == 2
    assert fitted(mode).feature_names == list(FEW)
    assert both.shape == (20, INPUTS.width + 2 * LEVELS)
    assert torch.equal(both[:, : INPUTS.width], plain)
    other_way = fitted(mode, FEW[::-1]).scale_inputs(x)
    assert torch.equal(both[:, -LEVELS:], other_way[:, INPUTS.width : -LEVELS])


def test_a_feature_is_standardised_like_any_column() -> None:
    inputs, targets = rows()
    fitting = Fitting(KAGGLE, Choice(name="standard"), ["air_total"])
    assert fitting.width == FLAT + LEVELS + len(departure_candidates(KAGGLE))
    columns = fitting.columns(inputs, targets)
    assert columns.flags.f_contiguous
    total = sum(inputs[:, INPUTS[f"pbuf_{gas}"]] for gas in ("ozone", "CH4", "N2O"))
    np.testing.assert_allclose(columns[:, INPUTS.width : INPUTS.width + LEVELS], total, rtol=1e-15)
    scaled = fitting.fit(Moments.of(columns), {}).scale_inputs(torch.from_numpy(inputs))[:, INPUTS.width :]
    np.testing.assert_allclose(scaled.numpy(), (total - total.mean(axis=0)) / total.std(axis=0), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_what_is_fitted_has_mean_0_and_std_1(mode: str) -> None:
    fitting = Fitting(KAGGLE, Choice(name=mode, options={"floor": 1e-300} if mode == "reference" else {"clip": None}), tuple(FEATURES))
    inputs, targets = rows()
    transform = fitting.fit(Moments.of(fitting.columns(inputs, targets)), {})
    scaled = transform.scale_inputs(torch.from_numpy(inputs)).double()
    groups = [INPUTS[variable.name] for variable in INPUTS.variables] if mode == "log-per-variable" else []
    groups += [slice(column, column + 1) for column in range(groups[-1].stop if groups else 0, scaled.shape[1])]
    for columns in groups:
        values = scaled[:, columns]
        if not transform.inputs.constant[columns].all() and values.std() > 1e-3:
            assert values.mean().abs() < 1e-4
            assert abs(values.std(correction=0) - 1) < 1e-4


@pytest.mark.parametrize("mode", MODES)
@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.one_of(st.floats(allow_nan=False, allow_infinity=False), st.sampled_from([1.7e308, -1.7e308, 5e-324, -0.0])),
        min_size=8,
        max_size=8,
    )
)
def test_any_finite_columns_give_finite_bounded_float32(mode: str, values: list[float]) -> None:
    transform = fitted(mode)
    x = torch.tensor(values, dtype=torch.float64).repeat(1000)
    inputs, targets = x[: 2 * INPUTS.width].reshape(2, -1), x[-2 * TARGETS.width :].reshape(2, -1)
    for scaled in (transform.scale_inputs(inputs), transform.scale_targets(targets, inputs)):
        assert scaled.dtype == torch.float32
        assert scaled.isfinite().all()
    if transform.inputs.clip:
        assert transform.scale_inputs(inputs).abs().max() < transform.inputs.clip + 90
    assert transform.unscale_targets(transform.scale_targets(targets, inputs), inputs).isfinite().all()


@pytest.mark.parametrize("table", TABLES)
def test_targets_of_another_kind_stay_within_float32(real: Transform, table: str) -> None:
    values = figures(table)
    recorded = [[float(values[key][i] or 0) for i in range(INPUTS.width, len(values[key]))] for key in ("min", "mean", "max")]
    scaled = real.scale_targets(torch.tensor(recorded, dtype=torch.float64), NO_INPUTS.expand(3, -1))
    assert scaled.isfinite().all()
    far = torch.full((1, TARGETS.width), 1e-3, dtype=torch.float64)
    assert real.scale_targets(far, NO_INPUTS).max() == torch.finfo(torch.float32).max


def test_the_inverse_holds_the_promised_bound(real: Transform) -> None:
    scaling = real.targets
    mean, scale = scaling.mean.numpy(), scaling.scale.numpy()
    x = mean + scale * np.random.default_rng(1).normal(size=(200, TARGETS.width)) * 100
    x[:, scaling.constant.numpy()] = mean[scaling.constant.numpy()]
    back = scaling.inverse(scaling(torch.from_numpy(x))).numpy()
    bound = 1e-12 * np.maximum(np.maximum(np.abs(x), np.abs(mean)), scale)
    assert (np.abs(back - x) <= bound).all()


@given(st.floats(-1e250, 1e250))
def test_the_logarithm_inverts_and_is_that_of_the_original(value: float) -> None:
    x = torch.tensor([[value]], dtype=torch.float64)
    y = log_columns(x)
    assert abs(exp_columns(y) - x) <= 1e-12 * max(abs(value), 1e-7)
    assert abs(log_columns(-x) + y - 2 * np.log(1e-7)) < 1e-12
    if value >= 0:
        assert abs(y - np.log(value + 1e-7)) <= 1e-14 * max(1.0, abs(float(y)))


@given(st.floats(allow_nan=False, allow_infinity=False), st.floats(allow_nan=False, allow_infinity=False))
def test_the_logarithm_is_monotone(one: float, other: float) -> None:
    low, high = log_columns(torch.tensor(sorted([one, other]), dtype=torch.float64))
    assert low.isfinite()
    assert low <= high


def test_log_columns_invert_through_their_scaling() -> None:
    scaling = fitted("log-per-variable", ("air_total",)).inputs
    one = ColumnScaling(scaling.mean, scaling.scale, scaling.constant, log=log_flags(scaling))
    x = np.concatenate([rows(50, seed=3)[0], rows(50, seed=3)[0][:, :LEVELS]], axis=1)
    x[::5] *= -0.01
    back = one.inverse(one(torch.from_numpy(x))).numpy()
    log = log_flags(scaling).numpy()
    assert (np.abs(back - x)[:, log] <= 1e-12 * np.maximum(np.abs(x[:, log]), 1e-7)).all()
    assert log.sum() == len(LOG_VARIABLES) * LEVELS


def log_flags(scaling: ColumnScaling) -> torch.Tensor:
    return torch.tensor([pre == "log" for pre in scaling.to_dict()["pre"]])


def test_a_constant_target_is_its_mean_whatever_a_network_says(real: Transform) -> None:
    constant = real.targets.constant
    assert int(constant.sum()) == 56
    physical = real.unscale_targets(torch.full((2, TARGETS.width), 0.7), NO_INPUTS.expand(2, -1))
    assert torch.equal(physical[:, constant], real.targets.mean[constant].expand(2, -1))


def test_the_soft_clip_is_inverted_too() -> None:
    one = torch.ones(1, dtype=torch.float64)
    scaling = ColumnScaling(0 * one, one, torch.tensor([False]), clip=30.0)
    z = torch.tensor([[-8500.0], [-30.0], [0.0], [29.9], [31.0], [1000.0]], dtype=torch.float64)
    clipped = scaling(z)
    assert clipped.abs().max() < 40
    torch.testing.assert_close(scaling.inverse(clipped), z, rtol=1e-12, atol=0)


@pytest.mark.parametrize("mode", MODES)
def test_a_saved_transform_is_the_same_to_the_last_bit(mode: str) -> None:
    transform = fitted(mode)
    again = Transform.from_dict(json.loads(json.dumps(transform.to_dict())))
    assert again.digest() == transform.digest()
    assert again.feature_names == list(FEW)
    x, y = (torch.from_numpy(part) for part in rows(4, seed=2))
    assert torch.equal(again.scale_inputs(x), transform.scale_inputs(x))
    assert torch.equal(again.scale_targets(y, x), transform.scale_targets(y, x))


@pytest.mark.parametrize("mode", MODES)
def test_the_transform_scripts_to_the_same_numbers(mode: str) -> None:
    transform = fitted(mode)
    scripted = torch.jit.script(transform)
    x, y = (torch.from_numpy(part) for part in rows(4, seed=3))
    assert torch.equal(scripted.scale_inputs(x * 3), transform.scale_inputs(x * 3))
    assert torch.equal(scripted.unscale_targets(y.float(), x), transform.unscale_targets(y.float(), x))


@pytest.mark.parametrize("mode", MODES)
def test_a_rows_numbers_depend_on_no_other_row_and_on_no_memory_layout(mode: str) -> None:
    transform = fitted(mode)
    inputs, targets = rows(600, seed=4)
    inputs[100] *= 1e6
    inputs[101] = np.nan
    for scale, arrays in ((transform.scale_inputs, [inputs]), (transform.scale_targets, [targets, inputs])):
        expected = scale(*map(torch.from_numpy, arrays))
        column_by_column = scale(*(torch.from_numpy(np.asfortranarray(values)) for values in arrays))
        one_by_one = torch.cat([scale(*(torch.from_numpy(values[row : row + 1]) for values in arrays)) for row in range(90, 110)])
        assert column_by_column.is_contiguous()
        torch.testing.assert_close(column_by_column, expected, rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(one_by_one, expected[90:110], rtol=0, atol=0, equal_nan=True)
        assert scale(*(torch.from_numpy(values[:0]) for values in arrays)).shape == (0, expected.shape[1])


def test_gradients_reach_the_raw_columns() -> None:
    transform = fitted("log-per-variable")
    x = torch.from_numpy(rows(2, seed=5)[0]).requires_grad_()
    transform.scale_inputs(x).sum().backward()
    assert x.grad is not None
    assert (x.grad != 0).all()


def test_reference_scaling_has_the_floor_of_the_original() -> None:
    width = INPUTS.width + TARGETS.width
    moments = Moments(1, np.zeros(width), np.full(width, 1e-18), np.full(width, -1e-9), np.full(width, 1e-9))
    transform = Fitting(KAGGLE, Choice(name="reference"), ()).fit(moments, {})
    assert (transform.inputs.scale == 1e-6).all()


@pytest.mark.parametrize(
    ("choice", "sentence"),
    [
        (Choice(name="standart"), "data.scaling.name is 'standart'; known ones are standard, reference, log-per-variable"),
        (Choice(name="standard", options={"clipp": 3}), "data.scaling.options: unknown key 'clipp'; did you mean 'clip'?"),
    ],
)
def test_an_unknown_scaling_or_option_is_named(choice: Choice, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence.replace("?", r"\?")):
        Fitting(KAGGLE, choice, ())


def test_a_transform_of_other_columns_is_refused(real: Transform) -> None:
    content = real.to_dict()
    for changed, sentence in (
        ({"digest": "abc"}, "its columns of v2_kaggle differ"),
        ({"inputs": ["state_t", "state_x"]}, "unknown variable 'state_x'; did you mean"),
    ):
        with pytest.raises(UserError, match=f"x: .*{sentence}"):
            Transform.from_dict(content | {"variables": content["variables"] | changed}, "x")
    with pytest.raises(UserError, match="made by an earlier leapray"):
        Transform.from_dict({key: value for key, value in content.items() if key != "variables"} | {"schema": "abc"})


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("scale", 0.0, "x: inputs: holds a mean or scale that is not a finite number, or a scale that is not above 0"),
        ("mean", float("nan"), "x: inputs: holds a mean or scale"),
        ("pre", "sqrt", "x: not a transform, KeyError at 'sqrt'"),
    ],
)
def test_a_damaged_transform_is_refused(real: Transform, key: str, value: object, sentence: str) -> None:
    content = real.to_dict()
    content["inputs"][key][5] = value
    with pytest.raises(UserError, match=sentence):
        Transform.from_dict(content, "x")


def test_a_transform_of_another_width_is_refused(real: Transform) -> None:
    with pytest.raises(UserError, match=r"x: inputs: mean has shape \(556,\), expected \(616,\)"):
        Transform.from_dict(real.to_dict() | {"features": ["air_total"]}, "x")
