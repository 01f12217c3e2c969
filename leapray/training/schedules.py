"""Learning-rate schedules by name: torch's schedulers, each stepped where it belongs, after a step, an epoch or a validation."""

from __future__ import annotations

import math
from typing import Any, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ConstantLR, LambdaLR, LRScheduler, MultiStepLR, ReduceLROnPlateau

from leapray.errors import UserError
from leapray.recipe import EqualAverage
from leapray.registry import Options, Registry


class Schedule:
    """A scheduler that is told of all that happens and steps after what it counts.

    Its state, with that of the optimizer, which holds the rate, continues in a fresh one exactly.
    """

    def __init__(self, scheduler: LRScheduler, counts: Literal["step", "epoch", "validation"]) -> None:
        self._scheduler = scheduler
        self._counts = counts

    def step_ended(self) -> None:
        """After every optimizer step."""
        if self._counts == "step":
            self._scheduler.step()

    def epoch_ended(self) -> None:
        """After the last step of an epoch."""
        if self._counts == "epoch":
            self._scheduler.step()

    def validated(self, score: float) -> None:
        """After every validation, with the score that chooses, the same on every rank."""
        if self._counts == "validation":
            self._scheduler.step(score)  # type: ignore[arg-type]

    def state_dict(self) -> dict[str, Any]:
        """Plain values; functions are not among them."""
        return self._scheduler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._scheduler.load_state_dict(state)


class AveragingRate(Schedule):
    """A schedule until an epoch, from whose beginning on the rate goes to that of weight averaging (as torch's ``SWALR`` with a cosine)."""

    def __init__(self, before: Schedule, optimizer: Optimizer, settings: EqualAverage) -> None:
        self._before, self._optimizer, self._settings = before, optimizer, settings
        self._epochs = 0
        self._rates: list[float] = []
        """Of the optimizer's groups, when averaging began."""
        self._set_rates()

    def step_ended(self) -> None:
        if not self._rates:
            self._before.step_ended()

    def epoch_ended(self) -> None:
        self._epochs += 1
        if not self._rates:
            self._before.epoch_ended()
        self._set_rates()

    def validated(self, score: float) -> None:
        if not self._rates:
            self._before.validated(score)

    def state_dict(self) -> dict[str, Any]:
        return {"epochs": self._epochs, "rates": self._rates, "before": self._before.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._epochs, self._rates = state["epochs"], list(state["rates"])
        self._before.load_state_dict(state["before"])

    def _set_rates(self) -> None:
        """Those of the epoch that begins."""
        since = self._epochs - (self._settings.start - 1)
        if since < 0:
            return
        groups = self._optimizer.param_groups
        if since == 0:
            self._rates = [float(group["lr"]) for group in groups]
        part = min(since / self._settings.anneal, 1.0) if self._settings.anneal else 1.0
        share = (1 - math.cos(math.pi * part)) / 2
        for group, rate in zip(groups, self._rates, strict=True):
            group["lr"] = self._settings.lr * share + rate * (1 - share)


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


class PlateauOptions(Options):
    """The rate is multiplied by ``factor`` when more than ``patience`` validations in a row brought no better score.

    As torch's ``ReduceLROnPlateau``; factor and patience are the original's, which watched an error.
    """

    factor: float = Field(10**-0.2, gt=0, lt=1)
    patience: NonNegativeInt = 6
    threshold: NonNegativeFloat = 0.0
    """What the score must gain over the best to count as better."""
    min_lr: NonNegativeFloat = 0.0


class CosineOptions(Options):
    """A linear rise to the optimizer's rate, then half a cosine down, which ends with the last step (Loshchilov and Hutter 2017)."""

    warmup: NonNegativeFloat = 0.0
    """Epochs of the rise, fewer than those of the training; parts of an epoch are counted in whole steps."""
    final: float = Field(0.0, ge=0, le=1)
    """The last step's rate, as a part of the optimizer's."""


def _constant(_: ConstantOptions, optimizer: Optimizer, steps_per_epoch: int, epochs: int) -> Schedule:
    return Schedule(ConstantLR(optimizer, factor=1.0), "epoch")


def _multistep(options: MultiStepOptions, optimizer: Optimizer, steps_per_epoch: int, epochs: int) -> Schedule:
    return Schedule(MultiStepLR(optimizer, milestones=list(options.milestones), gamma=options.gamma), "epoch")


def _plateau(options: PlateauOptions, optimizer: Optimizer, steps_per_epoch: int, epochs: int) -> Schedule:
    # an absolute threshold, for a score may be negative
    scheduler = ReduceLROnPlateau(optimizer, mode="max", threshold_mode="abs", **options.model_dump())
    return Schedule(scheduler, "validation")


def _cosine(options: CosineOptions, optimizer: Optimizer, steps_per_epoch: int, epochs: int) -> Schedule:
    if options.warmup >= epochs:
        raise UserError(f"training.schedule.options.warmup is {options.warmup:g} epochs; expected fewer than training.epochs, {epochs}")
    rising = round(options.warmup * steps_per_epoch)
    falling = max(steps_per_epoch * epochs - 1 - rising, 1)

    def factor(step: int) -> float:
        """Of the step after so many: the first at full rate comes after ``rising`` lower ones, none of which is zero."""
        if step < rising:
            return (step + 1) / (rising + 1)
        progress = min((step - rising) / falling, 1.0)
        return options.final + (1 - options.final) * (1 + math.cos(math.pi * progress)) / 2

    return Schedule(LambdaLR(optimizer, factor), "step")


SCHEDULES: Registry[Schedule] = Registry(
    "training.schedule",
    {
        "constant": (ConstantOptions, _constant),
        "multistep": (MultiStepOptions, _multistep),
        "plateau": (PlateauOptions, _plateau),
        "cosine": (CosineOptions, _cosine),
    },
)
"""``SCHEDULES.build(choice, optimizer, steps_per_epoch, epochs)``."""
