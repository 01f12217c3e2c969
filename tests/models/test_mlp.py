import numpy as np
import torch
from torch.nn import functional

from leapray.models.mlp import MLP, MLPOptions


def test_equals_an_independent_computation():
    torch.manual_seed(0)
    network = MLP(MLPOptions(hidden=(7, 5), activation="gelu", dropout=0.5)).eval()
    x = torch.randn(3, 556)
    weights = list(network.state_dict().values())
    h = functional.gelu(x @ weights[0].T + weights[1])
    h = functional.gelu(h @ weights[2].T + weights[3])
    np.testing.assert_allclose(network(x).detach(), h @ weights[4].T + weights[5], rtol=0, atol=1e-6)


def test_no_hidden_layer_is_a_linear_map():
    network = MLP(MLPOptions(hidden=()))
    a, b = torch.randn(2, 3, 556)
    torch.testing.assert_close(network(a + b) + network(torch.zeros(3, 556)), network(a) + network(b), rtol=0, atol=1e-5)


def test_features_widen_the_input():
    assert MLP(MLPOptions(hidden=(4,)), features=3)(torch.zeros(2, 736)).shape == (2, 368)


def test_scripted_network_is_the_same():
    network = MLP(MLPOptions(hidden=(8,)))
    x = torch.randn(5, 556)
    torch.testing.assert_close(torch.jit.script(network)(x), network(x), rtol=0, atol=0)
