"""Learning-rate schedules by name, stepped once at each epoch's end."""

from __future__ import annotations

from typing import Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ConstantLR, LRScheduler, MultiStepLR

from leapray.registry import Options, Registry


class ConstantOptions(Options):
    """No options."""


class MultiStepOptions(Options):
    """The rate is multiplied by ``gamma`` after each milestone, a number of finished epochs (as torch's ``MultiStepLR``)."""

    milestones: tuple[PositiveInt, ...] = Field(min_length=1)
    gamma: PositiveFloat = 0.1

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones {list(self.milestones)} must be ascending epochs without repeats")
        return self


def _constant(_: ConstantOptions, optimizer: Optimizer) -> LRScheduler:
    return ConstantLR(optimizer, factor=1.0)


def _multistep(options: MultiStepOptions, optimizer: Optimizer) -> LRScheduler:
    return MultiStepLR(optimizer, milestones=list(options.milestones), gamma=options.gamma)


SCHEDULES: Registry[LRScheduler] = Registry(
    "training.schedule", {"constant": (ConstantOptions, _constant), "multistep": (MultiStepOptions, _multistep)}
)
"""``SCHEDULES.build(choice, optimizer)``."""
