import numpy as np
import pytest
import torch
from torch import Tensor

from leapray.models.low_res_aqua import LowResAqua, LowResAquaOptions
from tests.columns import CHANNELS, INPUTS, TARGETS, with_features
from tests.models import by_hand

SMALL = LowResAquaOptions(encoder=(24, 10), lstm_hidden=6, lstm_layers=2, gru_hidden=3, head=(20,), dropout=0.3)


@pytest.fixture
def network() -> LowResAqua:
    torch.manual_seed(0)
    return LowResAqua(SMALL, CHANNELS).eval()


def columns(rows: int = 4, features: int = 0) -> Tensor:
    return torch.randn(rows, INPUTS.width + 60 * features, generator=torch.Generator().manual_seed(1))


def network_by_hand(x: np.ndarray, state: by_hand.State, head: list[str], features: int, activation: str) -> np.ndarray:
    column = by_hand.channels(x, features)
    # a linear code: each of the two ends in a layer without an activation
    code = by_hand.perceptron(column.reshape(len(x), -1), state, ["encoder.0", "encoder.2"], activation)
    summary = by_hand.perceptron(code, state, ["decoder.0", "decoder.2"], activation).reshape(column.shape)
    h = by_hand.both_ways(by_hand.lstm, np.concatenate([column, summary], axis=2), state, "lstm", layers=2)
    h = by_hand.both_ways(by_hand.gru, h, state, "gru", layers=1)
    return by_hand.perceptron(h.reshape(len(x), 360), state, head, activation)


@pytest.mark.parametrize(
    ("options", "features", "parameters"),
    [({}, 0, 18_525_030), ({"head": ()}, 9, 18_226_092)],
    ids=["base", "nine features"],
)
def test_full_size_has_the_originals_parameters(options, features, parameters):
    with torch.device("meta"):
        network = LowResAqua(LowResAquaOptions(**options), with_features(features))
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


@pytest.mark.parametrize(
    ("head", "names", "features", "activation"),
    [
        ((20,), ["head.prediction.0", "head.prediction.2"], 0, "relu"),
        ((20, 11), ["head.prediction.0", "head.prediction.2", "head.prediction.4"], 0, "silu"),
        ((20,), ["head.prediction.0", "head.prediction.2"], 1, "gelu"),
        ((), ["head.prediction"], 9, "elu"),
    ],
)
def test_equals_an_independent_computation(head, names, features, activation):
    torch.manual_seed(0)
    network = LowResAqua(SMALL.model_copy(update={"head": head, "activation": activation}), with_features(features)).eval().double()
    x = columns(features=features).double()
    state = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    expected = network_by_hand(x.numpy(), state, names, features, activation)
    np.testing.assert_allclose(network(x).detach().numpy(), expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(network.float()(x.float()).detach().numpy(), expected, rtol=1e-6, atol=1e-6)


def test_perceptrons_start_xavier_uniform_with_zero_bias():
    torch.manual_seed(0)
    layer = LowResAqua(SMALL, CHANNELS).encoder[0]
    bound = (6 / (1500 + 24)) ** 0.5
    assert not layer.bias.any()
    assert 0.99 * bound < layer.weight.abs().max() <= bound
    assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)


def test_a_head_of_one_layer_starts_as_pytorchs():
    torch.manual_seed(0)
    layer = LowResAqua(SMALL.model_copy(update={"head": ()}), CHANNELS).head.prediction
    bound = 360**-0.5
    for values in (layer.weight, layer.bias):
        assert 0.9 * bound < values.abs().max() <= bound


def autoencoder_widths(network: LowResAqua) -> list[int]:
    return [layer.out_features for part in (network.encoder, network.decoder) for layer in part[::2]]


def test_the_autoencoder_grows_with_the_channels_unless_its_widths_are_given():
    with torch.device("meta"):
        assert autoencoder_widths(LowResAqua(LowResAquaOptions(), with_features(9))) == [510, 272, 136, 272, 510, 2040]
    assert autoencoder_widths(LowResAqua(SMALL, with_features(9))) == [24, 10, 24, 2040]


@pytest.mark.parametrize(("place", "channel"), [("first", 0), ("after-state", 6), ("last", 25)])
def test_engineered_features_are_channels_in_their_place(place, channel):
    network = LowResAqua(SMALL.model_copy(update={"features_at": place}), with_features(9)).eval()
    x = columns(features=9)
    np.testing.assert_array_equal(network.channels(x).numpy(), by_hand.channels(x.numpy(), 9, channel))
    assert network(x).shape == (4, TARGETS.width)
    torch.testing.assert_close(torch.jit.script(network)(x), network(x), rtol=0, atol=1e-6)


def test_engineered_features_follow_the_state_by_default():
    x = columns(features=2)
    torch.testing.assert_close(LowResAqua(SMALL, with_features(2)).channels(x)[:, :, 6], x[:, 556:616])


def test_dropout_acts_in_training_only(network):
    x = columns()
    torch.testing.assert_close(network(x), network(x), rtol=0, atol=0)
    network.train()
    assert not torch.equal(network(x), network(x))


def test_every_parameter_gets_a_gradient(network):
    network(columns()).square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_scripted_network_is_the_same(network):
    for rows in (1, 4):
        torch.testing.assert_close(torch.jit.script(network)(columns(rows)), network(columns(rows)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("confidence", [False, True])
def test_head_stays_float32_under_autocast(confidence):
    torch.manual_seed(0)
    network = LowResAqua(SMALL.model_copy(update={"confidence": confidence, "dropout": 0.0}), CHANNELS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lowered = network(columns())
    assert lowered.dtype == torch.float32
    torch.testing.assert_close(lowered, network(columns()), rtol=0, atol=0.05)
