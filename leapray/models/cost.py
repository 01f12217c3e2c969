"""What a network costs: parameters, floating-point operations and memory of a training step, and kernels that wait for each other."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_FLOAT_BYTES = 4
PASSES = 3
"""Operations of a training row in forward passes: one forward, and two backward, for the inputs and for the weights of each layer."""
_ADAMW_MOMENTS = 2


@dataclass(frozen=True)
class Cost:
    """The cost of a network in training."""

    parameters: int
    """Parameters that take a gradient."""
    forward_flop: int
    """Operations of one row's forward pass: two for each weight of a linear or recurrent layer at each position where it is used."""
    activation_bytes: int
    """What the forward pass of one row keeps in float32 for the backward pass. With bf16 and fp16 it is about half."""
    kernels: int
    """GPU kernels of a step that start one after another, at the least: three for each linear layer, two for each level and layer of a
    recurrent one."""

    @property
    def training_flop(self) -> int:
        """Operations of one row, forward and backward."""
        return PASSES * self.forward_flop

    @property
    def gradient_bytes(self) -> int:
        """Gradients are float32 in every precision."""
        return _FLOAT_BYTES * self.parameters

    def state_bytes(self, *, averaged: bool) -> int:
        """Weights, gradients and AdamW's two moments, and with ``averaged`` an average of the weights, all float32."""
        return (2 + _ADAMW_MOMENTS + averaged) * self.gradient_bytes


def cost_of(network: nn.Module, inputs: int) -> Cost:
    """The cost of a network, counted in the forward pass of one row ``(1, inputs)``.

    Only linear, LSTM and GRU layers count operations and kernels. The network is left as it was.
    """
    flop, kernels = 0, 0
    weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept: list[Tensor] = []

    def count(module: nn.Module, given: tuple[Tensor, ...], _: object) -> None:
        nonlocal flop, kernels
        positions = given[0].numel() // given[0].shape[-1]
        flop += 2 * positions * sum(parameter.numel() for parameter in module.parameters() if parameter.dim() == 2)
        kernels += 2 * positions * module.num_layers if isinstance(module, nn.RNNBase) else PASSES

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    counted = [module for module in network.modules() if isinstance(module, nn.Linear | nn.LSTM | nn.GRU)]
    hooks = [module.register_forward_hook(count) for module in counted]
    try:
        # oneDNN keeps more than twice as much of a recurrent layer as a GPU does
        with (
            warnings.catch_warnings(action="ignore"),
            torch.backends.mkldnn.flags(enabled=False),
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        ):
            network(torch.zeros(1, inputs, device=next(network.parameters()).device))
    finally:
        for hook in hooks:
            hook.remove()
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in kept}
    activations = sum(size for place, size in storages.items() if place not in weights)
    return Cost(sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad), flop, activations, kernels)
