import json

import numpy as np
import pytest
import torch

from leapray.climsim.grid import figures
from leapray.climsim.schema import INPUTS, TARGETS
from leapray.data.moments import Moments
from leapray.data.transform import ColumnScaling, Transform, fit_transform
from leapray.errors import UserError
from leapray.recipe import Choice


def moments(mean: np.ndarray, std: np.ndarray) -> Moments:
    spread = 3 * std
    return Moments(1000, mean, 1000 * std**2, mean - spread, mean + spread)


@pytest.fixture(scope="module")
def real() -> Transform:
    """Fitted on the real low-res statistics: columns from 1e-51 to 1e5, with their true extremes."""
    table = figures("low_res_columns")
    values = {key: np.array([float(v or "nan") for v in table[key]]) for key in ("mean", "std", "min", "max")}
    parts = [
        Moments(1000, *(values[key][rows] for key in ("mean",)), 1000 * values["std"][rows] ** 2, values["min"][rows], values["max"][rows])
        for rows in (slice(0, INPUTS.width), slice(INPUTS.width, None))
    ]
    return fit_transform(Choice(name="standard"), *parts, {})


def test_the_66_constant_gas_columns_are_masked(real: Transform) -> None:
    constant = [column for column, flag in zip(INPUTS.columns, real.inputs.constant.tolist(), strict=True) if flag]
    assert constant == [f"pbuf_{gas}_{level}" for gas in ("CH4", "N2O") for level in range(27, 60)]


def test_real_extremes_scale_to_bounded_finite_values_and_keep_their_order(real: Transform) -> None:
    table = figures("low_res_columns")
    low, high = (torch.tensor([float(v) for v in table[key][: INPUTS.width]], dtype=torch.float64)[None] for key in ("min", "max"))
    scaled_low, scaled_high = real.scale_inputs(low), real.scale_inputs(high)
    assert torch.isfinite(scaled_low).all()
    assert scaled_high.abs().max() < 60
    assert ((scaled_high > scaled_low) | real.inputs.constant).all()


def test_scaling_equals_numpy_by_hand(real: Transform) -> None:
    table = figures("low_res_columns")
    mean, std = (np.array([float(v) for v in table[key][: INPUTS.width]]) for key in ("mean", "std"))
    x = mean + std * np.random.default_rng(0).normal(size=(50, INPUTS.width)) * 40
    z = (x - mean) / std
    z[:, real.inputs.constant.numpy()] = 0
    expected = np.where(np.abs(z) <= 30, z, np.sign(z) * (30 + np.log(1 + np.maximum(np.abs(z) - 30, 0))))
    np.testing.assert_allclose(real.inputs(torch.from_numpy(x)).numpy(), expected, rtol=1e-12, atol=1e-12)


def test_the_inverse_holds_the_promised_bound(real: Transform) -> None:
    scaling = real.targets
    mean, scale = scaling.mean.numpy(), scaling.scale.numpy()
    x = mean + scale * np.random.default_rng(1).normal(size=(200, TARGETS.width)) * 100
    x[:, scaling.constant.numpy()] = mean[scaling.constant.numpy()]
    back = scaling.inverse(scaling(torch.from_numpy(x))).numpy()
    bound = 1e-12 * np.maximum(np.maximum(np.abs(x), np.abs(mean)), scale)
    assert (np.abs(back - x) <= bound).all()


def test_a_constant_target_is_its_mean_whatever_a_network_says(real: Transform) -> None:
    constant = real.targets.constant
    assert int(constant.sum()) == 56
    physical = real.unscale_targets(torch.full((2, TARGETS.width), 0.7))
    assert torch.equal(physical[:, constant], real.targets.mean[constant].expand(2, -1))


def test_the_soft_clip_is_inverted_too() -> None:
    one = torch.ones(1, dtype=torch.float64)
    scaling = ColumnScaling(0 * one, one, torch.tensor([False]), clip=30.0)
    z = torch.tensor([[-8500.0], [-30.0], [0.0], [29.9], [31.0], [1000.0]], dtype=torch.float64)
    clipped = scaling(z)
    assert clipped.abs().max() < 40
    torch.testing.assert_close(scaling.inverse(clipped), z, rtol=1e-12, atol=0)


def test_a_saved_transform_is_the_same_to_the_last_bit(real: Transform) -> None:
    again = Transform.from_dict(json.loads(json.dumps(real.to_dict())))
    assert again.digest() == real.digest()
    x = torch.from_numpy(np.random.default_rng(2).normal(size=(4, INPUTS.width)))
    assert torch.equal(again.scale_inputs(x), real.scale_inputs(x))


def test_the_transform_scripts_to_the_same_numbers(real: Transform) -> None:
    scripted = torch.jit.script(real)
    x = torch.from_numpy(np.random.default_rng(3).normal(size=(4, INPUTS.width)) * 300)
    assert torch.equal(scripted.scale_inputs(x), real.scale_inputs(x))


def test_reference_scaling_has_the_floor_of_the_original() -> None:
    std = np.full(INPUTS.width, 1e-9)
    transform = fit_transform(
        Choice(name="reference"), moments(np.zeros(INPUTS.width), std), moments(np.zeros(TARGETS.width), np.ones(TARGETS.width)), {}
    )
    assert (transform.inputs.scale == 1e-6).all()


@pytest.mark.parametrize(
    ("choice", "sentence"),
    [
        (Choice(name="standart"), "data.scaling.name is 'standart'; known ones are standard, reference"),
        (Choice(name="standard", options={"clipp": 3}), "data.scaling.options: unknown key 'clipp'; did you mean 'clip'?"),
    ],
)
def test_an_unknown_scaling_or_option_is_named(choice: Choice, sentence: str) -> None:
    part = moments(np.zeros(INPUTS.width), np.ones(INPUTS.width))
    with pytest.raises(UserError, match=sentence.replace("?", r"\?")):
        fit_transform(choice, part, part, {})


def test_a_transform_of_another_schema_is_refused(real: Transform) -> None:
    with pytest.raises(UserError, match="made for schema abc"):
        Transform.from_dict(real.to_dict() | {"schema": "abc"})
