import numpy as np
import pytest
import torch

from leapray.climsim.schema import KAGGLE
from leapray.data.fitting import Fitting
from leapray.data.moments import Moments
from leapray.errors import UserError
from leapray.models.directory import save_model
from leapray.models.registry import build_network
from leapray.recipe import Choice, parse_recipe
from leapray.training.start import check_start, starting_weights
from tests.samples import recipe_values

NETWORK = Choice(name="mlp", options={"hidden": [16]})


def transform(features=(), seed=0):
    fitting = Fitting(KAGGLE, Choice(name="standard"), features)
    return fitting.fit(Moments.of(np.random.default_rng(seed).normal(size=(9, fitting.width))), {})


def recipe(tmp_path, network=None, **start):
    values = recipe_values(tmp_path, start={"model": str(tmp_path / "base"), **start})
    return parse_recipe(values | ({"network": network} if network else {}))


@pytest.fixture
def base(tmp_path):
    """A model directory, and its weights."""

    def make(network=NETWORK, fitted=None):
        fitted = fitted or transform()
        torch.manual_seed(1)
        weights = build_network(network.name, network.options, fitted.channels).state_dict()
        save_model(str(tmp_path / "base"), weights, network, fitted)
        return weights

    return make


def refusal(ours, fitted):
    with pytest.raises(UserError) as caught:
        check_start(ours, fitted)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_recipe_that_begins_with_nothing_is_not_checked(tmp_path):
    check_start(parse_recipe(recipe_values(tmp_path)), transform())


def test_a_model_of_the_same_network_and_scaling_is_taken(tmp_path, base):
    base()
    check_start(recipe(tmp_path), transform())
    # an option that is not given has its default
    check_start(recipe(tmp_path, {"name": "mlp", "options": {"hidden": (16,), "confidence": False}}), transform())


@pytest.mark.parametrize(
    ("network", "difference"),
    [
        ({"name": "mlp", "options": {"hidden": [8]}}, r"network.options.hidden: [16], now [8]"),
        ({"name": "mlp", "options": {"hidden": [16], "confidence": True}}, "network.options.confidence: False, now True"),
        ({"name": "linear"}, "network.name: 'mlp', now 'linear'"),
    ],
)
@pytest.mark.parametrize("scaling", ["same", "any"])
def test_another_network_is_refused_with_the_difference(tmp_path, base, network, difference, scaling):
    base()
    said = refusal(recipe(tmp_path, network, transform=scaling), transform())
    assert said.startswith(f"{tmp_path}/base: its network is not the recipe's (")
    assert difference in said


@pytest.mark.parametrize("scaling", ["same", "any"])
@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ((), ("temperature_difference",)),
        (("temperature_difference",), ()),
        # as many of them, but others, or in another order
        (("temperature_difference",), ("air_total",)),
        (("air_total", "temperature_difference"), ("temperature_difference", "air_total")),
    ],
)
def test_other_features_are_refused_whatever_the_scaling(tmp_path, base, theirs, ours, scaling):
    base(fitted=transform(theirs))
    said = refusal(recipe(tmp_path, transform=scaling), transform(ours))
    assert said == f"{tmp_path}/base: takes the engineered features {list(theirs)}, but the data has {list(ours)}"


def test_another_scaling_is_refused_with_what_to_do_unless_any_is_asked_for(tmp_path, base):
    base()
    ours, theirs = transform(seed=1), transform()
    said = refusal(recipe(tmp_path), ours)
    assert f"scaled by transform {theirs.digest()}, but this data was prepared with {ours.digest()}" in said
    assert f"prepare it with data.statistics: {tmp_path}/base/model.json, or set transform: any beside it" in said
    check_start(recipe(tmp_path, transform="any"), ours)


def test_a_place_without_a_model_is_named(tmp_path):
    assert refusal(recipe(tmp_path), transform()) == f"{tmp_path}/base: not a model directory (model.json is missing)"


def test_the_weights_are_those_that_were_saved(tmp_path, base):
    weights = base()
    start = recipe(tmp_path).training.start
    torch.testing.assert_close(starting_weights(start), dict(weights), rtol=0, atol=0)
    (tmp_path / "base" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"base/model\.safetensors"):
        starting_weights(start)
