"""Dropout from a generator of its own: PyTorch's own values for the same draws."""

import pytest
import torch
from torch import nn

from leapray.training.dropout import OwnDropout, has_dropout, other_dropout


def run(network: nn.Module, own: bool, *inputs: torch.Tensor) -> list[torch.Tensor]:
    """Outputs and gradients of all parameters, with the numbers that follow seed 5."""
    network.zero_grad()
    torch.manual_seed(5 if not own else 6)
    if own:
        with OwnDropout(torch.Generator().manual_seed(5)):
            output = network(*inputs)
    else:
        output = network(*inputs)
    tensors = [output] if isinstance(output, torch.Tensor) else [output[0], *(output[1] if isinstance(output[1], tuple) else output[1:])]
    sum(tensor.square().sum() for tensor in tensors).backward()
    return [*tensors, *(parameter.grad.clone() for parameter in network.parameters())]


@pytest.mark.parametrize("p", [0.3, 0.0])
@pytest.mark.parametrize("settings", [{}, {"bidirectional": True}, {"batch_first": True, "bias": False}], ids=str)
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN, lambda *args, **kw: nn.RNN(*args, nonlinearity="relu", **kw)])
def test_recurrent_layers_are_pytorchs_own(kind, settings, p):
    torch.manual_seed(0)
    layers = kind(5, 4, 3, dropout=p, **settings)
    assert has_dropout(layers) == (p > 0)
    inputs = torch.randn(6, 7, 5)
    for ours, theirs in zip(run(layers, True, inputs), run(layers, False, inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_lstm_with_projections_and_a_hidden_state():
    layers = nn.LSTM(5, 4, 2, dropout=0.5, proj_size=3)
    hidden = torch.randn(2, 7, 3), torch.randn(2, 7, 4)
    inputs = torch.randn(6, 7, 5)
    for ours, theirs in zip(run(layers, True, inputs, hidden), run(layers, False, inputs, hidden), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("settings", [{}, {"inplace": True}, {"p": 1.0}], ids=str)
def test_dropout_layers_are_pytorchs_own(settings):
    network = nn.Sequential(nn.Linear(5, 40), nn.Dropout(**settings), nn.Linear(40, 3))
    inputs = torch.randn(8, 5)
    for ours, theirs in zip(run(network, True, inputs), run(network, False, inputs), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_nothing_is_dropped_in_evaluation():
    network, inputs = nn.Dropout(0.5).eval(), torch.randn(8, 5)
    with OwnDropout(torch.Generator()):
        assert torch.equal(network(inputs), inputs)


@pytest.mark.parametrize(
    ("layer", "known", "other"),
    [
        (nn.Dropout(0.1), True, None),
        (nn.Dropout(0.0), False, None),
        (nn.LSTM(2, 2, 1), False, None),
        (nn.Dropout1d(0.1), False, "Dropout1d"),
        (nn.AlphaDropout(0.0), False, None),
        (nn.MultiheadAttention(4, 2, dropout=0.1), False, "MultiheadAttention"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_layers_that_drop_are_found(layer, known, other):
    network = nn.Sequential(layer)
    assert has_dropout(network) == known
    assert other_dropout(network) == other
