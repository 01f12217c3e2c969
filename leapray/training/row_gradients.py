"""Gradients of a step whose rows are divided among threads (:class:`leapray.models.row_threads.RowThreads`)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.parametrize import is_parametrized

from leapray.errors import UserError
from leapray.models.row_threads import RowThreads
from leapray.recipe import Training
from leapray.training.dropout import OwnDropout, has_dropout, other_dropout
from leapray.training.losses import Loss
from leapray.training.phases import BACKWARD, FORWARD, LOSS, UNTIMED, Phases

_SEEDS = 1 << 62


def cannot_divide(network: nn.Module, training: Training) -> str | None:
    """Why threads cannot divide the rows of a step of this network, in a clause; None where they can.

    The gradient would be another one, or would depend on which thread is faster.
    """
    if isinstance(network, DistributedDataParallel):
        return "several workers exchange gradients during the backward pass"
    if training.precision != "float32":
        # autocast keeps one cache of lowered weights for all threads, which the first to finish clears
        return f"training.precision is {training.precision}, expected float32"
    for module in network.modules():
        if isinstance(module, _NormBase):
            return f"{type(module).__name__} depends on all rows of a step"
        if is_parametrized(module):
            return f"{type(module).__name__} has a parametrized weight, which a forward pass may change"
    if layer := other_dropout(network):
        return f"{layer} draws its random numbers in the order in which threads run"
    return None


class RowGradients:
    """Forward and backward passes of one network by several threads, whose gradients are added in the order of the rows.

    So the sum is the same in every run with as many threads. Dropout draws numbers of its own for every thread, from seeds that
    PyTorch's generator gives. They repeat for the same seed and the same number of threads.
    """

    def __init__(self, network: nn.Module, loss: Loss, parameters: Sequence[Tensor], threads: RowThreads, phases: Phases = UNTIMED) -> None:
        self._network, self._loss, self._threads, self._phases = network, loss, threads, phases
        self._parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self._dropout = has_dropout(network)

    def add(self, inputs: Tensor, targets: Tensor, kind: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Add the gradient of some rows' loss, their weighted sum of losses ``(b,)``; these two, and the network's output ``(b, o)``.

        ``inputs`` (b, i), ``targets`` (b, t), ``kind`` (b,), ``weights`` (b,). Raises UserError where the network has drawn random
        numbers by other means than dropout.
        """
        seeds = torch.randint(_SEEDS, (self._threads.count,)).tolist() if self._dropout else []
        state = torch.get_rng_state()

        def one(number: int, share: slice) -> tuple[Tensor, Tensor, tuple[Tensor | None, ...]]:
            with self._phases(FORWARD), OwnDropout(torch.Generator().manual_seed(seeds[number])) if seeds else nullcontext():
                prediction = self._network(inputs[share])
            with self._phases(LOSS):
                by_row = self._loss(prediction, targets[share], kind[share], inputs[share])
                loss = torch.dot(by_row, weights[share])
            with self._phases(BACKWARD):
                gradients = torch.autograd.grad(loss, self._parameters, allow_unused=True)
            return by_row.detach(), prediction.detach(), gradients

        by_row, prediction, gradients = zip(*self._threads.map(one, len(inputs)), strict=True)
        if not torch.equal(state, torch.get_rng_state()):
            raise UserError("the network draws random numbers other than dropout's in training; set resources.cpu_threading to operators")
        for parameter, parts in zip(self._parameters, zip(*gradients, strict=True), strict=True):
            for part in parts:
                if part is not None:
                    # a copy, since one tensor may be the gradient of two parameters
                    parameter.grad = part.clone() if parameter.grad is None else parameter.grad.add_(part)
        losses = torch.cat(by_row)
        return torch.dot(losses, weights), losses, torch.cat(prediction)
