"""Optimizers by name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import nn
from torch.optim import Optimizer

from leapray.registry import Options, Registry

_Beta = Annotated[float, Field(ge=0, lt=1)]


class AdamWOptions(Options):
    """Decoupled weight decay (Loshchilov and Hutter 2019); the reference trains with lr 6.5e-4 and decay 2e-3.

    All trained parameters decay, biases too, as in the reference; those that take no gradient are left out.
    """

    lr: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = 1e-2
    betas: tuple[_Beta, _Beta] = (0.9, 0.999)


def _adamw(options: AdamWOptions, parameters: Iterable[nn.Parameter]) -> Optimizer:
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    # on a GPU no other takes the fp16 scaler's verdict on the device; on a CPU it is the fastest
    return torch.optim.AdamW(trained, lr=options.lr, weight_decay=options.weight_decay, betas=options.betas, fused=True)


OPTIMIZERS: Registry[Optimizer] = Registry("training.optimizer", {"adamw": (AdamWOptions, _adamw)})
"""``OPTIMIZERS.build(choice, parameters)``."""
