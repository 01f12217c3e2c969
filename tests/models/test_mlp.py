import numpy as np
import pytest
import torch

from leapray.models.mlp import MLP, MLPOptions
from tests.columns import CHANNELS, with_features
from tests.models import by_hand


@pytest.mark.parametrize("activation", ["relu", "elu", "gelu", "silu"])
def test_equals_an_independent_computation(activation):
    torch.manual_seed(0)
    network = MLP(MLPOptions(hidden=(7, 5), activation=activation, dropout=0.5), CHANNELS).eval().double()
    x = torch.randn(3, 556, dtype=torch.float64)
    state = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    expected = by_hand.perceptron(x.numpy(), state, ["body.0", "body.3", "head.prediction.0"], activation)
    np.testing.assert_allclose(network(x).detach().numpy(), expected, rtol=1e-9, atol=1e-12)


def test_no_hidden_layer_is_a_linear_map():
    network = MLP(MLPOptions(hidden=()), CHANNELS)
    a, b = torch.randn(2, 3, 556)
    torch.testing.assert_close(network(a + b) + network(torch.zeros(3, 556)), network(a) + network(b), rtol=0, atol=1e-5)


def test_features_widen_the_input():
    assert MLP(MLPOptions(hidden=(4,)), with_features(3))(torch.zeros(2, 736)).shape == (2, 368)


@pytest.mark.parametrize("hidden", [(), (8,)])
def test_scripted_network_is_the_same(hidden):
    network = MLP(MLPOptions(hidden=hidden), CHANNELS)
    x = torch.randn(5, 556)
    torch.testing.assert_close(torch.jit.script(network)(x), network(x), rtol=0, atol=0)


def test_head_stays_float32_under_autocast():
    network = MLP(MLPOptions(hidden=(8,)), CHANNELS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert network(torch.zeros(2, 556)).dtype == torch.float32
