"""Losses of scaled rows over the columns that are learned: by default neither the targets that are always 0 nor the exact ones.

A loss is computed row by row; :meth:`Loss.row_weights` says how rows sum to a batch.

Shapes: b rows, i inputs, t targets, c columns of the loss.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor, nn

from leapray.climsim.row_keys import KINDS
from leapray.climsim.schema import Channels, Targets
from leapray.registry import Options, Registry

_LARGEST_SQUARED = 1e18
"""An error whose square, summed over all columns with the original's weights, is still a float32."""


class LossOptions(Options):
    """What every loss knows."""

    columns: Literal["learned", "scored", "all"] = "learned"
    """The targets that only learning gives, those that are scored, or all."""
    scale: PositiveFloat = 1.0
    """Factor of the whole loss; the models with features of the competition's 5th place have 4."""
    vertical_difference: NonNegativeFloat = 0.0
    """Weight of the same loss of the differences between neighbouring levels of each profile, where both are columns."""


class Loss(nn.Module, ABC):
    """The mean of an elementwise loss over columns, for every row, in float32 whatever the precision of the network.

    Columns that are not asked for are left out, not multiplied by zero, so that not even a NaN in them can matter; a NaN in one of the
    others is a NaN of its row. A network with a confidence head gives twice the columns, and the second half is trained to predict the
    elementwise loss of the first: ``mean(H(y', y) + H(c', H(y', y)))``, where no gradient passes through the target of the second
    term.
    """

    columns: Tensor
    """Flat target columns of the loss, (c,)."""
    upper: Tensor
    """Those that have a neighbour below them among the columns."""

    def __init__(self, options: LossOptions, channels: Channels) -> None:
        super().__init__()
        self.scale, self.vertical_difference = options.scale, options.vertical_difference
        self.channels, self.width = channels, channels.targets.width
        chosen = _columns(channels.targets, options.columns)
        has_level_below = channels.targets.mask((one.name for one in channels.targets.profiles), range(channels.targets.levels - 1))
        self._register("columns", np.flatnonzero(chosen))
        self._register("upper", np.flatnonzero(chosen & has_level_below & np.roll(chosen, -1)))

    def _register(self, name: str, values: np.ndarray) -> None:
        # never saved: the recipe says it
        self.register_buffer(name, torch.from_numpy(values), persistent=False)

    def forward(self, prediction: Tensor, target: Tensor, kind: Tensor | None = None, inputs: Tensor | None = None) -> Tensor:
        """Loss of every row (b,), from scaled predictions (b, t), or (b, 2 t) with a confidence head, and targets (b, t).

        ``inputs`` (b, i) are the network's, for losses that see them (:meth:`further`).
        ``kind`` (b,) int64 is each row's place in ``tuple(KINDS)``; only the paired loss asks for it.
        """
        predicted, predicted_loss = prediction[:, : self.width], prediction[:, self.width :]
        target = self.soften(target)
        errors = self.elementwise(self._select(predicted), self._select(target), kind)
        row = _row_mean(errors)
        if predicted_loss.shape[1]:
            row = row + _row_mean(self.elementwise(self._select(predicted_loss), errors.detach(), kind))
        if self.vertical_difference:
            differences = self.elementwise(self._difference(predicted), self._difference(target), kind)
            row = row + self.vertical_difference * _row_mean(differences)
        if inputs is not None and (further := self.further(predicted, target, inputs)) is not None:
            row = row + further
        return self.scale * row

    @abstractmethod
    def elementwise(self, prediction: Tensor, target: Tensor, kind: Tensor | None) -> Tensor:
        """Loss of every element of two float32 tensors (b, n)."""

    def further(self, prediction: Tensor, target: Tensor, inputs: Tensor) -> Tensor | None:
        """A further loss of every row (b,), which may depend on the network's inputs (b, i), from predictions and targets (b, t).

        All are scaled. ``self.channels`` has the columns of a variable: ``inputs[:, self.channels.inputs["state_t"]]``.
        """
        return None

    def soften(self, target: Tensor) -> Tensor:
        """The targets (b, t) that errors are taken from."""
        return target

    def row_weights(self, rows: int, kind: Tensor | None, device: torch.device) -> Tensor:
        """Weights (b,) with which the rows' losses sum to the loss of a batch of ``rows``: here their mean."""
        return torch.full((rows,), 1.0 / rows, device=device)

    def of_kinds(self, sums: np.ndarray, rows: np.ndarray) -> float:
        """The loss of a set of rows from the sums (kinds,) of their losses and the numbers (kinds,) of rows, by kind: as of a batch."""
        return float(sums.sum() / rows.sum())

    def _select(self, values: Tensor) -> Tensor:
        return values.index_select(1, self.columns).float()

    def _difference(self, values: Tensor) -> Tensor:
        return values.index_select(1, self.upper + 1).float() - values.index_select(1, self.upper).float()


def _columns(targets: Targets, name: str) -> np.ndarray:
    """bool (t,): the columns of a loss by the name that a recipe gives them."""
    return {"learned": targets.learned, "scored": targets.scored, "all": np.ones(targets.width, dtype=bool)}[name]


def _row_mean(errors: Tensor) -> Tensor:
    # divided before they are summed, so that the sum of large squares does not leave float32
    return (errors / errors.shape[1]).sum(1)


class PlainLoss(Loss):
    """One of torch's losses, the same for rows of every kind."""

    def __init__(self, options: LossOptions, channels: Channels, function: Callable[..., Tensor], **settings: float) -> None:
        super().__init__(options, channels)
        self._function = partial(function, reduction="none", **settings)

    def elementwise(self, prediction: Tensor, target: Tensor, kind: Tensor | None) -> Tensor:
        return self._function(prediction, target)


class HuberOptions(LossOptions):
    delta: PositiveFloat = 1.0
    """Error, in scaled units, at which the loss turns from quadratic to linear."""


class SmoothL1Options(LossOptions):
    beta: PositiveFloat = 1.0
    """Error, in scaled units, at which the loss turns from quadratic to linear; it is Huber's loss divided by this."""


class KindWeights(Options):
    """Weights of the mean absolute and the mean squared error in the rows of one kind."""

    l1: NonNegativeFloat
    mse: NonNegativeFloat


class PairOptions(LossOptions):
    """By default the weights of the competition's 5th place.

    Aqua-planet rows have those of low-res, whose grid they share, unless they are given their own.
    """

    low_res: KindWeights = KindWeights(l1=1.0, mse=0.08)
    high_res: KindWeights = KindWeights(l1=0.3, mse=0.0005)
    aqua_planet: KindWeights | None = None
    soft_clip: PositiveFloat | None = None
    """Scaled targets beyond this many standard deviations continue as ``clip + log(1 + |z| - clip)``; none keeps them as they are."""

    def of_kind(self, kind: str) -> KindWeights:
        """Weights of a kind by its name."""
        return getattr(self, kind.replace("-", "_")) or self.low_res


class PairLoss(Loss):
    """``l1 * mean|e| + mse * mean e^2`` with the weights of the row's kind, and the batch's loss the sum of the kinds' means.

    Rows of no kind count as low-res. Squares are taken of errors up to 1e18, so that every such error has a finite loss; beyond, only
    the absolute error goes on to grow, and an infinite or NaN error still has a loss that is not finite.
    """

    weights: Tensor
    """``l1`` and ``mse`` of every kind, (kinds, 2)."""

    def __init__(self, options: PairOptions, channels: Channels) -> None:
        super().__init__(options, channels)
        self.soft_clip = options.soft_clip
        kinds = [options.of_kind(kind) for kind in KINDS]
        self._register("weights", np.array([[weights.l1, weights.mse] for weights in kinds], dtype=np.float32))
        self._default = list(KINDS).index("low-res")

    def elementwise(self, prediction: Tensor, target: Tensor, kind: Tensor | None) -> Tensor:
        weights = self.weights[self._default, None] if kind is None else self.weights.index_select(0, kind)
        l1, mse = weights[:, :1], weights[:, 1:]
        error = prediction - target
        return l1 * error.abs() + mse * error.clamp(-_LARGEST_SQUARED, _LARGEST_SQUARED).square()

    def soften(self, target: Tensor) -> Tensor:
        if self.soft_clip is None:
            return target
        beyond = (target.abs() - self.soft_clip).clamp(min=0.0).log1p()
        return target.clamp(-self.soft_clip, self.soft_clip) + beyond.copysign(target)

    def row_weights(self, rows: int, kind: Tensor | None, device: torch.device) -> Tensor:
        """One over the batch's rows of the same kind, counted by comparisons, which need no answer from the device."""
        if kind is None:
            return super().row_weights(rows, kind, device)
        counts = (kind.unsqueeze(1) == torch.arange(len(KINDS), device=device)).sum(0)
        return counts.index_select(0, kind).float().reciprocal()

    def of_kinds(self, sums: np.ndarray, rows: np.ndarray) -> float:
        return float((sums[rows > 0] / rows[rows > 0]).sum())


LOSSES: Registry[Loss] = Registry(
    "training.loss",
    {
        "huber": (HuberOptions, lambda options, channels: PlainLoss(options, channels, F.huber_loss, delta=options.delta)),
        "mae": (LossOptions, lambda options, channels: PlainLoss(options, channels, F.l1_loss)),
        "mse": (LossOptions, lambda options, channels: PlainLoss(options, channels, F.mse_loss)),
        "smooth-l1": (SmoothL1Options, lambda options, channels: PlainLoss(options, channels, F.smooth_l1_loss, beta=options.beta)),
        "pair": (PairOptions, PairLoss),
    },
)
"""``LOSSES.build(choice, channels)``."""
