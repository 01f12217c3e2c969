import numpy as np
import pytest
import torch

from leapray.climsim.schema import LEARNED, TARGETS
from leapray.errors import UserError
from leapray.recipe import Choice
from leapray.training.losses import LOSSES


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 5, TARGETS.width, generator=generator).mul(2).unbind()


def huber(error, delta):
    size = np.abs(error)
    return np.where(size <= delta, size**2 / 2, delta * (size - delta / 2))


@pytest.mark.parametrize(
    ("choice", "by_hand"),
    [
        (Choice(name="huber"), lambda error: huber(error, 1.0)),
        (Choice(name="huber", options={"delta": 0.25}), lambda error: huber(error, 0.25)),
        (Choice(name="mae"), np.abs),
        (Choice(name="mse"), np.square),
    ],
)
def test_is_the_mean_over_rows_and_learned_columns(pair, choice, by_hand):
    prediction, target = pair
    error = (prediction - target).numpy().astype(np.float64)[:, LEARNED]
    assert LOSSES.build(choice)(prediction, target).item() == pytest.approx(by_hand(error).mean(), rel=1e-6)


@pytest.mark.parametrize("name", LOSSES.entries)
def test_nothing_in_ablated_or_exact_columns_matters(pair, name):
    prediction, target = pair
    loss = LOSSES.build(Choice(name=name))
    before = loss(prediction, target)
    prediction, target = prediction.clone().requires_grad_(), target.clone()
    with torch.no_grad():
        prediction[:, ~LEARNED] = torch.nan
        target[:, ~LEARNED] = 1e30
    after = loss(prediction, target)
    after.backward()
    assert after == before
    assert torch.count_nonzero(prediction.grad[:, ~LEARNED]) == 0
    assert torch.isfinite(prediction.grad).all()


def test_is_float32_for_a_half_precision_prediction(pair):
    prediction, target = pair
    half = prediction.to(torch.bfloat16)
    loss = LOSSES.build(Choice(name="huber"))
    assert loss(half, target).dtype == torch.float32
    assert loss(half, target) == loss(half.float(), target)


def test_names_what_is_wrong():
    with pytest.raises(UserError, match=r"training\.loss.*'hubber'.*huber, mae, mse"):
        LOSSES.build(Choice(name="hubber"))
    with pytest.raises(UserError, match="delta"):
        LOSSES.build(Choice(name="huber", options={"delta": -1}))
    with pytest.raises(UserError, match="delta"):
        LOSSES.build(Choice(name="mse", options={"delta": 1}))
