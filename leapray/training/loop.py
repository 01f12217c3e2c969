"""The training loop in plain PyTorch, on one process of any number: epochs, steps, validation, the best model, early stopping.

It knows neither Ray nor files. The caller wraps the network (DDP), and gives what joins the processes and what keeps the state.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from leapray.climsim.schema import EXACT, LEARNED, SCORED
from leapray.errors import UserError
from leapray.evaluation.metrics import ErrorMoments, Score
from leapray.recipe import Training
from leapray.training.losses import LOSSES
from leapray.training.optimizers import OPTIMIZERS
from leapray.training.schedules import SCHEDULES

Batch = dict[str, np.ndarray]
"""``inputs`` (b, i) and ``targets`` (b, 368), float32, scaled; other keys are left alone."""
Record = dict[str, Any]
State = dict[str, Any]

_DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_CURVE_POINTS = 100


class Batches(Protocol):
    """One rank's share of the rows. Every rank takes the same number of training steps; validation may be shared unevenly."""

    steps: int
    """Training steps of an epoch."""
    validation_rows: int
    """Validation rows of all ranks together, one or more."""

    def train(self, epoch: int, first_step: int = 0) -> Iterator[Batch]: ...

    def validate(self) -> Iterator[Batch]: ...


@dataclass(frozen=True)
class Peers:
    """This process among those that train together. ``gather`` gives every rank's array of one shape, in rank order."""

    rank: int = 0
    gather: Callable[[np.ndarray], list[np.ndarray]] = field(default=lambda array: [array])


@dataclass(frozen=True)
class Fitted:
    """The best network of a training and the record of every epoch."""

    weights: dict[str, Tensor]
    """Its ``state_dict``, a copy on the CPU."""
    history: list[Record]

    @property
    def best(self) -> Record:
        """The epoch whose weights these are."""
        return best_of(self.history)


def best_of(history: Sequence[Record]) -> Record:
    """The epoch whose weights are kept: the first of highest validation R2."""
    return max(history, key=lambda record: record["r2"])


class Loop:
    """One training: network, optimizer, schedule, the best so far, and the history.

    Raises UserError for an unknown loss, optimizer or schedule, and for a wrong option of theirs.
    """

    def __init__(self, network: nn.Module, batches: Batches, training: Training, device: torch.device, peers: Peers | None = None) -> None:
        self.network = network
        self.bare = network.module if isinstance(network, DistributedDataParallel) else network
        self.batches = batches
        self.training = training
        self.device = device
        self.peers = peers or Peers()
        self.loss = LOSSES.build(training.loss).to(device)
        self.optimizer = OPTIMIZERS.build(training.optimizer, self.bare.parameters())
        self.schedule = SCHEDULES.build(training.schedule, self.optimizer)
        self.scaler = torch.amp.GradScaler(device.type, enabled=training.precision == "fp16")
        self.history: list[Record] = []
        self.best_weights: dict[str, Tensor] = {}

    def state(self) -> State:
        """All that the rest of the training depends on, after an epoch. Tensors are the live ones: write or copy them at once."""
        return {
            "network": self.bare.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "history": self.history,
            "best_weights": self.best_weights,
        }

    def restore(self, state: State) -> None:
        """Continue after the epoch at whose end :meth:`state` was taken."""
        self.bare.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        self.history, self.best_weights = list(state["history"]), dict(state["best_weights"])

    @property
    def finished(self) -> bool:
        """All epochs are trained, or ``patience`` of them brought no better validation."""
        epochs, patience = len(self.history), self.training.patience
        if epochs == 0 or patience is None:
            return epochs >= self.training.epochs
        return epochs >= self.training.epochs or epochs - best_of(self.history)["epoch"] >= patience

    def fit(self, report: Callable[[Record], None], log: Callable[[Record], None] = lambda _: None, log_seconds: float = 1.0) -> Fitted:
        """Train until finished; rows come in the order of the plan, whatever was trained before.

        ``report`` is called at each epoch's end on every rank, with the epoch's record, and may take the loop's :meth:`state`; ``log``
        is called inside an epoch, at most every ``log_seconds``, with this rank's own loss. Epochs count from 1, steps run through all
        epochs. Raises UserError, naming epoch and step, when the loss is no longer finite, and RuntimeError when validation rows were
        lost or came twice.
        """
        while not self.finished:
            epoch = len(self.history) + 1
            record: Record = {"event": "epoch"} | self._place(epoch, self.batches.steps) | self._train(epoch, log, log_seconds)
            self.schedule.step()
            record |= self._validate(epoch)
            self.history.append(record)
            if best_of(self.history) is record:
                self.best_weights = {name: tensor.detach().to("cpu", copy=True) for name, tensor in self.bare.state_dict().items()}
            report(record)
        return Fitted(self.best_weights, self.history)

    def _place(self, epoch: int, step: int) -> Record:
        """Where a record stands: the epoch, the steps done in all, and the steps planned."""
        steps = self.batches.steps
        lr = self.optimizer.param_groups[0]["lr"]
        return {"epoch": epoch, "step": (epoch - 1) * steps + step, "steps": self.training.epochs * steps, "lr": lr}

    def _train(self, epoch: int, log: Callable[[Record], None], log_seconds: float) -> Record:
        """One epoch, and what it gives to its record."""
        steps = self.batches.steps
        self.network.train()
        # dropout repeats after a resume, and differs between ranks
        torch.manual_seed(int(np.random.SeedSequence([self.training.seed, epoch, self.peers.rank]).generate_state(1)[0]))
        losses = torch.zeros(steps, device=self.device)
        batches = self.batches.train(epoch - 1)
        started = last = time.perf_counter()
        logged, waited, waited_in_all = 0, 0.0, 0.0
        for step in range(steps):
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            losses[step] = self._step(*self._to_device(batch))
            # rarer as the epoch goes on, so that a long run keeps its log short and is seldom held up by the read
            if time.perf_counter() - last >= max(log_seconds, (last - started) / 100):
                recent = losses[logged : step + 1].double().cpu().numpy()
                self._require_finite(recent, epoch, logged)
                seconds, last = time.perf_counter() - last, time.perf_counter()
                speed = {"rows_per_s": len(recent) * self.training.batch_size / seconds, "data_wait_s": waited}
                log({"event": "step"} | self._place(epoch, step + 1) | {"loss": float(recent.mean())} | speed)
                waited_in_all += waited
                logged, waited = step + 1, 0.0
        # ranks have equal rows in every step, so the mean of their means is the mean over the rows
        curve = np.mean(self.peers.gather(losses.double().cpu().numpy()), axis=0)
        self._require_finite(curve, epoch, 0)
        return {
            "loss": float(curve.mean()),
            "loss_curve": [float(part.mean()) for part in np.array_split(curve, min(_CURVE_POINTS, steps))],
            "rows_per_s": steps * self.training.batch_size / (time.perf_counter() - started),
            "data_wait_s": waited_in_all + waited,
        }

    def _step(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Forward, backward and update on one batch; the loss, still on the device, for nothing here may wait for it."""
        with self._autocast():
            prediction = self.network(inputs)
        loss = self.loss(prediction, targets)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach()

    @torch.no_grad()
    def _validate(self, epoch: int) -> Record:
        """Mean loss and R2 over the validation rows of all ranks, each once."""
        self.network.eval()
        moments, total = ErrorMoments(), 0.0
        for batch in self.batches.validate():
            inputs, targets = self._to_device(batch)
            with self._autocast():
                prediction = self.bare(inputs).float()
            total += float(self.loss(prediction, targets)) * len(inputs)
            moments.update(batch["targets"], prediction.cpu().numpy())
        totals = self.peers.gather(np.array([total]))
        merged = sum((ErrorMoments.from_array(part) for part in self.peers.gather(moments.to_array())), ErrorMoments())
        if merged.count != self.batches.validation_rows:
            raise RuntimeError(f"epoch {epoch}: {merged.count} validation rows arrived of {self.batches.validation_rows}")
        loss = float(np.sum(totals)) / merged.count
        if not np.isfinite(loss):
            raise UserError(f"validation loss is {loss} after epoch {epoch}; a lower training.optimizer.options.lr may help")
        return {"val_loss": loss} | _figures(merged.score())

    def _autocast(self) -> Any:
        dtype = _DTYPES[self.training.precision]
        return nullcontext() if dtype is torch.float32 else torch.autocast(self.device.type, dtype)

    def _to_device(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Inputs and targets on the device. Arrays are read-only, so they pass through memory of torch's own, pinned for a GPU."""

        def move(array: np.ndarray) -> Tensor:
            host = torch.empty(array.shape, dtype=torch.float32, pin_memory=self.device.type == "cuda")
            np.copyto(host.numpy(), array)
            return host.to(self.device, non_blocking=True)

        return move(batch["inputs"]), move(batch["targets"])

    def _require_finite(self, losses: np.ndarray, epoch: int, first: int) -> None:
        if not np.isfinite(losses).all():
            step = first + int(np.flatnonzero(~np.isfinite(losses))[0])
            raise UserError(
                f"training loss is {losses[step - first]} at epoch {epoch}, step {step + 1} of {self.batches.steps}; "
                f"a lower training.optimizer.options.lr or training.precision float32 may help"
            )


def _figures(score: Score) -> Record:
    """Validation figures of a bare network on scaled rows, where R2 by column is the same as in physical units (DESIGN, Score)."""
    learned = float(score.r2[LEARNED].sum())
    return {
        "r2": score.learned,
        "r2_scored": (int(EXACT.sum()) + learned) / int(SCORED.sum()),
        "leaderboard": score.leaderboard,
        "r2_by_variable": score.by_variable(),
        "val_rows": score.rows,
    }
