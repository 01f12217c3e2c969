import numpy as np
import pytest
import torch
from torch import Tensor

from leapray.models.low_res_high_res import LowResHighRes, LowResHighResOptions
from tests.columns import CHANNELS, INPUTS, with_features
from tests.models import by_hand

SMALL = LowResHighResOptions(embedding=7, hidden=5, layers=3, head=9, dropout=0.3)


def built(features: int = 0, **options: object) -> LowResHighRes:
    torch.manual_seed(0)
    return LowResHighRes(SMALL.model_copy(update=options), with_features(features)).eval()


def columns(rows: int = 4, features: int = 0) -> Tensor:
    return torch.randn(rows, INPUTS.width + 60 * features, generator=torch.Generator().manual_seed(1))


def network_by_hand(x: np.ndarray, state: by_hand.State, features: int, activation: str) -> np.ndarray:
    """The definition of the competition's 5th-place solution; what is joined stands in the order of the original's code."""
    act = by_hand.ACTIVATIONS[activation]
    embedded = act(by_hand.linear(by_hand.channels(x, features) / 5, state, "embedding"))
    h = by_hand.both_ways(by_hand.lstm, embedded / 5, state, "lstm", layers=3)
    mean = np.repeat(h.mean(axis=1, keepdims=True), 60, axis=1)
    padded = np.pad(h, [(0, 0), (1, 1), (0, 0)])
    near = (padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]) / 3
    h = act(by_hand.linear(np.concatenate([h, mean, embedded, near], axis=2) / 5, state, "joined"))
    profiles = by_hand.linear(h, state, "head.prediction.profiles")
    pooled = h.mean(axis=1)
    if "head.prediction.attention.weight" in state:
        attention = np.exp(by_hand.linear(h, state, "head.prediction.attention"))
        pooled = (attention / attention.sum(axis=1, keepdims=True) * h).sum(axis=1)
    scalars = by_hand.perceptron(pooled, state, ["head.prediction.scalars.0", "head.prediction.scalars.2"], activation)
    y = np.concatenate([*(profiles[:, :, variable] for variable in range(6)), scalars], axis=1)
    return state["head.prediction.weight"] * y / 3 + state["head.prediction.bias"] / 3


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        ({}, 11_679_279),
        ({"embedding": 300, "hidden": 280, "pooling": "mean"}, 13_626_630),
        ({"hidden": 320, "head": 1024, "dropout": 0.05}, 18_152_687),
    ],
    ids=["attention-256", "mean-280", "attention-320"],
)
def test_full_size_has_the_originals_parameters(options, parameters):
    with torch.device("meta"):
        network = LowResHighRes(LowResHighResOptions(**options), CHANNELS)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


@pytest.mark.parametrize(
    ("pooling", "activation", "features"), [("attention", "elu", 0), ("mean", "elu", 0), ("attention", "gelu", 2), ("mean", "relu", 1)]
)
def test_equals_an_independent_computation(pooling, activation, features):
    network = built(features, pooling=pooling, activation=activation).double()
    with torch.no_grad():
        # larger weights let every layer leave its linear range
        for parameter in network.parameters():
            parameter.mul_(3)
    x = columns(features=features).double()
    state = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    expected = network_by_hand(x.numpy(), state, features, activation)
    np.testing.assert_allclose(network(x).detach().numpy(), expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(network.float()(x.float()).detach().numpy(), expected, rtol=1e-6, atol=1e-6)


def test_starts_as_pytorchs_layers_do():
    head = built().head.prediction
    for values in (head.weight, head.bias):
        assert 0.95 * 368**-0.5 < values.abs().max() <= 368**-0.5
        assert values.min() < 0 < values.max()


@pytest.mark.parametrize(("place", "channel"), [("first", 0), ("after-state", 6), ("last", 25)])
def test_engineered_features_are_channels_in_their_place(place, channel):
    x = columns(features=2)
    np.testing.assert_array_equal(built(2, features_at=place).channels(x).numpy(), by_hand.channels(x.numpy(), 2, channel))


def test_dropout_acts_in_training_only():
    network, x = built(), columns()
    torch.testing.assert_close(network(x), network(x), rtol=0, atol=0)
    network.train()
    assert not torch.equal(network(x), network(x))


def test_one_layer_takes_no_dropout_between_layers(recwarn):
    built(layers=1)
    assert not recwarn.list


@pytest.mark.parametrize("pooling", ["attention", "mean"])
def test_every_parameter_gets_a_gradient(pooling):
    network = built(pooling=pooling)
    network(columns()).square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("pooling", ["attention", "mean"])
def test_scripted_network_is_the_same(pooling):
    network = built(pooling=pooling)
    for rows in (1, 4):
        torch.testing.assert_close(torch.jit.script(network)(columns(rows)), network(columns(rows)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("confidence", [False, True])
def test_heads_stay_float32_under_autocast(confidence):
    network = built(confidence=confidence).train()
    network.lstm.dropout = 0.0
    types = {}
    for name in ("lstm", "head"):
        network.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: types.update({name: (output[0] if name == "lstm" else output).dtype})
        )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lowered = network(columns())
    assert types == {"lstm": torch.bfloat16, "head": torch.float32}
    torch.testing.assert_close(lowered, network(columns()), rtol=0, atol=0.01)
