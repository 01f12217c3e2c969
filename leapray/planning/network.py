"""What a recipe's network costs: parameters, arithmetic, and the levels that its recurrent layers take one after another."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from leapray.climsim.schema import INPUTS, LEVELS
from leapray.models.cost import cost_of as count_of
from leapray.models.registry import build_network
from leapray.recipe import Recipe

PASSES = 3
"""The arithmetic of a training row in passes forward: one is the way forward, two are the way back."""
_WAYS = 2


@dataclass(frozen=True)
class Cost:
    """Of a network."""

    parameters: int
    """That take a gradient."""
    flop: float
    """Of a training row; 0 where no layer of it can be counted."""
    serial: int
    """Kernels of a step that each wait for the one before, forward and back: the levels of every recurrent layer."""


def cost_of(recipe: Recipe) -> Cost:
    """Build the network and count. Raises UserError as :func:`leapray.models.registry.build_network` does."""
    features = len(recipe.data.features)
    network = build_network(recipe.network.name, recipe.network.options, features).eval()
    layers = sum(module.num_layers for module in network.modules() if isinstance(module, nn.RNNBase))
    return Cost(
        parameters=sum(weights.numel() for weights in network.parameters() if weights.requires_grad),
        flop=PASSES * count_of(network, INPUTS.width + LEVELS * features).forward_flop,
        serial=_WAYS * LEVELS * layers,
    )
