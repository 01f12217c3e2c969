"""Networks' layers in float64 numpy, written from their definitions: b batch, l levels, c channels, h hidden."""

from collections.abc import Callable
from math import erf

import numpy as np

State = dict[str, np.ndarray]
"""Weights by the names of PyTorch's ``state_dict``."""


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "relu": lambda x: np.maximum(x, 0),
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "gelu": lambda x: x * (1 + np.vectorize(erf)(x / np.sqrt(2))) / 2,
    "silu": lambda x: x * sigmoid(x),
}


def linear(x: np.ndarray, state: State, name: str) -> np.ndarray:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def perceptron(x: np.ndarray, state: State, names: list[str], activation: str = "relu") -> np.ndarray:
    """Linear layers with an activation between them."""
    for name in names[:-1]:
        x = ACTIVATIONS[activation](linear(x, state, name))
    return linear(x, state, names[-1])


def lstm(x: np.ndarray, weights: list[np.ndarray]) -> np.ndarray:
    """One direction, (b, l, c) to (b, l, h), gates in the order input, forget, cell, output."""
    w_input, w_hidden, b_input, b_hidden = weights
    h = c = np.zeros((len(x), w_hidden.shape[1]))
    steps = []
    for level in range(x.shape[1]):
        i, f, g, o = np.split(x[:, level] @ w_input.T + b_input + h @ w_hidden.T + b_hidden, 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        steps.append(h)
    return np.stack(steps, axis=1)


def gru(x: np.ndarray, weights: list[np.ndarray]) -> np.ndarray:
    """One direction, (b, l, c) to (b, l, h), gates in the order reset, update, new."""
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


def both_ways(
    step: Callable[[np.ndarray, list[np.ndarray]], np.ndarray], x: np.ndarray, state: State, name: str, layers: int
) -> np.ndarray:
    """Bidirectional layers: each level gets what comes from above and what comes from below, (b, l, 2 h)."""
    for layer in range(layers):
        parts = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        down, up = ([state[f"{name}.{part}_l{layer}{suffix}"] for part in parts] for suffix in ("", "_reverse"))
        x = np.concatenate([step(x, down), step(x[:, ::-1], up)[:, ::-1]], axis=2)
    return x


def channels(x: np.ndarray, features: int = 0, features_at: int = 6) -> np.ndarray:
    """Flat columns (b, 556 + 60 features) as (b, 60, 25 + features): state, gases, scalars, features before channel ``features_at``."""
    found = [x[:, 60 * k : 60 * k + 60] for k in range(6)]
    found += [x[:, 376 + 60 * k : 436 + 60 * k] for k in range(3)]
    found += [np.tile(x[:, k : k + 1], 60) for k in range(360, 376)]
    found[features_at:features_at] = [x[:, 556 + 60 * k : 616 + 60 * k] for k in range(features)]
    return np.stack(found, axis=2)
