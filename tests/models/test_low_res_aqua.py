import numpy as np
import pytest
import torch
from torch import Tensor

from leapray.climsim.schema import INPUTS, TARGETS
from leapray.models.low_res_aqua import LowResAqua, LowResAquaOptions

SMALL = LowResAquaOptions(encoder=(24, 10), lstm_hidden=6, lstm_layers=2, gru_hidden=3, head=20, dropout=0.3)


@pytest.fixture
def network() -> LowResAqua:
    torch.manual_seed(0)
    return LowResAqua(SMALL).eval()


def columns(rows: int = 4, features: int = 0) -> Tensor:
    return torch.randn(rows, INPUTS.width + 60 * features, generator=torch.Generator().manual_seed(1))


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def lstm_by_hand(x: np.ndarray, weights: list[np.ndarray]) -> np.ndarray:
    """One direction, (B, L, C) to (B, L, H), gates in the order input, forget, cell, output."""
    w_input, w_hidden, b_input, b_hidden = weights
    h = c = np.zeros((len(x), w_hidden.shape[1]))
    steps = []
    for level in range(x.shape[1]):
        i, f, g, o = np.split(x[:, level] @ w_input.T + b_input + h @ w_hidden.T + b_hidden, 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        steps.append(h)
    return np.stack(steps, axis=1)


def gru_by_hand(x: np.ndarray, weights: list[np.ndarray]) -> np.ndarray:
    """One direction, (B, L, C) to (B, L, H), gates in the order reset, update, new."""
    w_input, w_hidden, b_input, b_hidden = weights
    h = np.zeros((len(x), w_hidden.shape[1]))
    steps = []
    for level in range(x.shape[1]):
        from_input = np.split(x[:, level] @ w_input.T + b_input, 3, axis=1)
        from_hidden = np.split(h @ w_hidden.T + b_hidden, 3, axis=1)
        reset, update = (sigmoid(from_input[gate] + from_hidden[gate]) for gate in (0, 1))
        h = (1 - update) * np.tanh(from_input[2] + reset * from_hidden[2]) + update * h
        steps.append(h)
    return np.stack(steps, axis=1)


def both_ways(step, x: np.ndarray, state: dict[str, np.ndarray], prefix: str, layer: int) -> np.ndarray:
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    down, up = ([state[f"{prefix}.{name}_l{layer}{suffix}"] for name in names] for suffix in ("", "_reverse"))
    return np.concatenate([step(x, down), step(x[:, ::-1], up)[:, ::-1]], axis=2)


def perceptron_by_hand(x: np.ndarray, state: dict[str, np.ndarray], prefix: str, positions: range) -> np.ndarray:
    for position in positions:
        x = x @ state[f"{prefix}.{position}.weight"].T + state[f"{prefix}.{position}.bias"]
        x = np.maximum(x, 0) if position != positions[-1] else x
    return x


def network_by_hand(x: np.ndarray, state: dict[str, np.ndarray]) -> np.ndarray:
    channels = [x[:, 60 * k : 60 * k + 60] for k in range(6)]
    channels += [x[:, 376 + 60 * k : 436 + 60 * k] for k in range(3)]
    channels += [np.tile(x[:, k : k + 1], 60) for k in range(360, 376)]
    column = np.stack(channels, axis=2)
    summary = perceptron_by_hand(column.reshape(len(x), 1500), state, "autoencoder", range(0, 7, 2)).reshape(len(x), 60, 25)
    h = np.concatenate([column, summary], axis=2)
    for layer in range(2):
        h = both_ways(lstm_by_hand, h, state, "lstm", layer)
    h = both_ways(gru_by_hand, h, state, "gru", 0)
    return perceptron_by_hand(h.reshape(len(x), 360), state, "head.layers", range(0, 3, 2))


def test_full_size_has_the_originals_parameters():
    with torch.device("meta"):
        network = LowResAqua(LowResAquaOptions())
    assert sum(parameter.numel() for parameter in network.parameters()) == 18_525_030


def test_equals_an_independent_computation(network):
    x = columns().double()
    state = {name: tensor.numpy() for name, tensor in network.double().state_dict().items()}
    np.testing.assert_allclose(network(x).detach().numpy(), network_by_hand(x.numpy(), state), rtol=1e-9, atol=1e-12)


def test_perceptrons_start_xavier_uniform_with_zero_bias():
    torch.manual_seed(0)
    layer = LowResAqua(SMALL).autoencoder[0]
    bound = (6 / (1500 + 24)) ** 0.5
    assert not layer.bias.any()
    assert 0.99 * bound < layer.weight.abs().max() <= bound
    assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)


@pytest.mark.parametrize(("place", "channel"), [("first", 0), ("after-state", 6), ("last", 25)])
def test_engineered_features_are_channels_in_their_place(place, channel):
    network = LowResAqua(SMALL.model_copy(update={"features_at": place}), features=9).eval()
    x = columns(features=9)
    channels = network.channels(x)
    assert channels.shape == (4, 60, 34)
    torch.testing.assert_close(channels[:, :, channel : channel + 9], x[:, 556:].reshape(4, 9, 60).transpose(1, 2))
    rest = torch.cat([channels[:, :, :channel], channels[:, :, channel + 9 :]], dim=2)
    assert torch.equal(rest, LowResAqua(SMALL).channels(x[:, :556]))
    assert network(x).shape == (4, TARGETS.width)
    torch.testing.assert_close(torch.jit.script(network)(x), network(x), rtol=0, atol=1e-6)


def test_engineered_features_follow_the_state_by_default():
    x = columns(features=2)
    torch.testing.assert_close(LowResAqua(SMALL, features=2).channels(x)[:, :, 6], x[:, 556:616])


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


def test_head_stays_float32_under_autocast(network):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lowered = network(columns())
    assert lowered.dtype == torch.float32
    torch.testing.assert_close(lowered, network(columns()), rtol=0, atol=0.05)
