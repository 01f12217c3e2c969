"""The training loop in plain PyTorch, on one process of any number: epochs, steps, validations, the best model, early stopping.

It knows neither Ray nor files. The caller wraps the network (DDP), and gives what joins the processes and what keeps the state.
Where ranks meet, everything that the rest of the training depends on is in :meth:`Loop.state`; random numbers begin anew there from the
seed, the step and the rank, so that a training goes on from any of its states as if it had never stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from leapray.climsim.row_keys import KINDS
from leapray.data.transform import Transform
from leapray.errors import UserError
from leapray.evaluation.metrics import ErrorMoments, Score
from leapray.recipe import CpuThreading, Training
from leapray.training.averaging import EpochMean, MovingAverage, WeightAverage, recompute_batch_norm
from leapray.training.effort import Effort, Meter
from leapray.training.feed import Batch, Feed
from leapray.training.losses import LOSSES
from leapray.training.optimizers import OPTIMIZERS
from leapray.training.pace import Pace, Peers
from leapray.training.phases import METRICS, OPTIMIZER, UNTIMED, Phases
from leapray.training.schedules import SCHEDULES, AveragingRate, Schedule
from leapray.training.step import Step
from leapray.training.tally import Tally
from leapray.training.validation import DeviceMoments

Record = dict[str, Any]
"""What ``metrics.jsonl`` has a line of: a ``step`` record of the steps since the one before, or a ``validation`` record.

Where it stands: ``event``, ``epoch`` and ``step`` from 1, ``step`` and ``steps`` through all epochs, and ``lr``; of steps the ``workers``
that took them.
Of training, since the last record, or in a validation since the last validation: mean ``loss``; ``seconds``, ``rows_per_s`` of all ranks;
of rank 0 ``data_wait_s`` and ``data_wait_share`` of the seconds, ``cpus`` that it kept busy, ``memory_bytes`` that it holds for itself,
``gpu_use`` (0 to 1, as NVML samples it) and the most ``gpu_memory_bytes`` that tensors took. What a machine does not tell is left out, and
all but the loss in a validation that a resumed training begins with.
Of a validation, before the physics: ``val_loss``, ``score``, which chooses the best validation and is the skill or, where a recipe says so,
R2; ``skill`` and the ``attainable`` skill of a perfect emulator; ``r2`` of the learned columns, ``r2_varying`` of those of them that vary,
``r2_median``, ``r2_below_zero`` and ``r2_silent``, the numbers of learned columns whose R2 is below 0 and that hardly vary; ``r2_scored``,
``leaderboard``, ``skill_by_variable``, ``r2_by_variable``, ``val_rows``, ``val_seconds``, ``loss_curve`` of the steps in at most 100
parts, ``trained_rows`` and ``row_checksum`` of their rows (:class:`leapray.training.tally.Tally`), and ``averaged``, how many weights its
network is the mean of.
"""
State = dict[str, Any]

_CURVE_POINTS = 100
_REPORT_SECONDS = 1.0
_GPU_BLOCK = 32


class Batches(Protocol):
    """One rank's share of the rows. Every rank takes the same number of training steps; validation may be shared unevenly."""

    steps: int
    """Training steps of an epoch."""
    validation_rows: int
    """Validation rows of all ranks together, one or more."""
    sources: tuple[str, ...]
    """Names of the sources, which a batch's ``source`` counts."""
    kinds: tuple[str, ...]
    """Each source's kind."""
    transform: Transform
    """What the rows were scaled by."""

    def train(self, epoch: int, first_step: int = 0) -> Iterator[Batch]: ...

    def validate(self) -> Iterator[Batch]: ...


@dataclass(frozen=True)
class Fitted:
    """The best network of a training and the record of every validation."""

    weights: dict[str, Tensor]
    """Its ``state_dict``, a copy on the CPU."""
    history: list[Record]

    @property
    def best(self) -> Record:
        """The validation whose weights these are."""
        return ranked(self.history)[0]


def ranked(history: Sequence[Record]) -> list[Record]:
    """Validations from the best score to the worst, of equal ones the first first; of averages over epochs, those of more epochs lead.

    So the model of a training that averages over epochs is the average over all of them, which nothing has chosen.
    """
    return sorted(history, key=lambda record: (-record.get("averaged", 0), -record["score"]))


def chosen(history: Sequence[Record], best: int, last: int) -> list[Record]:
    """The best and the last validations, as :func:`ranked` has them, each once, oldest first."""
    wanted = [record["step"] for record in [*ranked(history)[:best], *(history[-last:] if last else ())]]
    return [record for record in history if record["step"] in wanted]


class Loop:
    """One training: network, optimizer, schedule, moving average, the best so far, and the history.

    Raises UserError for an unknown loss, optimizer or schedule, and for a wrong option of theirs.
    """

    def __init__(
        self,
        network: nn.Module,
        batches: Batches,
        training: Training,
        device: torch.device,
        peers: Peers | None = None,
        cpu_threading: CpuThreading | None = None,
        phases: Phases = UNTIMED,
    ) -> None:
        self.network = network
        self.bare = network.module if isinstance(network, DistributedDataParallel) else network
        self.batches = batches
        self.training = training
        self.device = device
        self.peers = peers or Peers()
        self.phases = phases
        self.loss = LOSSES.build(training.loss, batches.transform.channels).to(device)
        self.optimizer = OPTIMIZERS.build(training.optimizer, self.bare.parameters())
        self.schedule = self._schedule()
        self.average = self._average()
        self._kinds = torch.tensor([list(KINDS).index(kind) for kind in batches.kinds], device=device)
        self.step = Step(network, self.loss, self.optimizer, training, self._kinds, self.peers.world, cpu_threading, phases)
        self.block = _GPU_BLOCK if device.type == "cuda" else 1
        """Steps of an epoch between which random numbers go on, and ranks do not meet; cuDNN waits for the device at each beginning."""
        self.done = 0
        """Steps taken, through all epochs."""
        self.history: list[Record] = []
        self.best_weights: dict[str, Tensor] = {}
        self._losses = np.empty(0)
        """Of every step since the last validation, the mean over all ranks."""
        self._tally = Tally()
        """Of the rows of all ranks since the last validation."""
        self._effort = Effort()
        """Of the steps since the last validation that this process took."""
        part = [round(batches.steps * (number + 1) / training.validations) for number in range(training.validations)]
        self._validation_steps = [step for step in dict.fromkeys(part) if step]

    def _schedule(self) -> Schedule:
        training = self.training
        schedule = SCHEDULES.build(training.schedule, self.optimizer, self.batches.steps, training.epochs)
        return AveragingRate(schedule, self.optimizer, training.swa) if training.swa else schedule

    def _average(self) -> WeightAverage | None:
        if self.training.swa:
            return EpochMean(self.bare, self.training.swa)
        return MovingAverage(self.bare, self.training.ema) if self.training.ema else None

    @property
    def evaluated(self) -> nn.Module:
        """What is validated and saved: the average of weights once there is one, else the network."""
        return self.bare if self.average is None or self.average.members == 0 else self.average.network

    def state(self) -> State:
        """All that the rest of the training depends on, between steps. Tensors are the live ones: write or copy them at once."""
        return {
            "done": self.done,
            "steps": self.batches.steps,
            "network": self.bare.state_dict(),
            "average": self.average.state_dict() if self.average else {},
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.step.scaler.state_dict(),
            "losses": torch.from_numpy(self._losses),
            "tally": [self._tally.rows, self._tally.checksum],
            "history": self.history,
            "best_weights": self.best_weights,
        }

    def begin_with(self, weights: Mapping[str, Tensor]) -> None:
        """Take a network's ``state_dict`` instead of the weights that were drawn, before the first step."""
        self.bare.load_state_dict(dict(weights))
        self.average = self._average()

    def restore(self, state: State) -> None:
        """Continue where :meth:`state` was taken. Raises UserError when the epochs there had another number of steps."""
        if state["steps"] != self.batches.steps:
            raise UserError(f"checkpoint of epochs of {state['steps']} steps, but the data gives {self.batches.steps}; choose another run")
        self.bare.load_state_dict(state["network"])
        if self.average:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.step.scaler.load_state_dict(state["scaler"])
        self.done, self._losses = state["done"], state["losses"].numpy()
        # a checkpoint of an earlier leapray has none
        self._tally = Tally(*state.get("tally", ()))
        self.history, self.best_weights = list(state["history"]), dict(state["best_weights"])

    @property
    def finished(self) -> bool:
        """All epochs are trained and validated, or ``patience`` validations brought no better one.

        An average over epochs is waited for, and better with each.
        """
        return not self._validation_due and (self.done >= self.training.epochs * self.batches.steps or self._out_of_patience)

    @property
    def _validation_due(self) -> bool:
        step = (self.done - 1) % self.batches.steps + 1
        validated = self.history[-1]["step"] if self.history else 0
        return self.done > validated and step in self._validation_steps

    @property
    def _out_of_patience(self) -> bool:
        if self.training.patience is None or not self.history or self.training.swa:
            return False
        return len(self.history) - 1 - self.history.index(ranked(self.history)[0]) >= self.training.patience

    def fit(
        self,
        report: Callable[[Record], None] = lambda _: None,
        keep: Callable[[], None] = lambda: None,
        report_seconds: float = _REPORT_SECONDS,
    ) -> Fitted:
        """Train until finished; rows come in the order of the plan, whatever was trained before.

        All ranks call ``report`` together, with a record of the steps since the last one about every ``report_seconds``, and with
        that of each validation. They call ``keep`` together when the :meth:`state` is worth writing: after a validation, and between
        steps every ``checkpoint_seconds``. Epochs count from 1, steps run through all epochs. Raises UserError on all ranks,
        naming epoch, step, columns and source, when the loss is no longer finite, and RuntimeError when validation rows were lost or
        came twice.
        """
        pace = Pace(report_seconds, self.training.checkpoint_seconds)
        feed, served = Feed(iter(()), self.device), -1
        with Meter(self.device) as meter, self.step.threads():
            while not self.finished:
                if self._validation_due:
                    report(self._validate())
                    keep()
                    pace.kept()
                    pace.begin()
                    meter.begin()
                    continue
                epoch, step = divmod(self.done, self.batches.steps)
                if epoch != served:
                    feed, served = Feed(self.batches.train(epoch, step), self.device, self.phases), epoch
                    pace.begin_epoch()
                stop = max(step + pace.steps, step + self.block) // self.block * self.block
                stop = min(stop, next(point for point in self._validation_steps if point > step))
                report(self._advance(feed, stop - step, pace, meter))
                pace.worth_keeping(keep, self.peers)
        self.phases.close()
        return Fitted(self.best_weights, self.history)

    def _advance(self, feed: Feed, steps: int, pace: Pace, meter: Meter) -> Record:
        """So many steps, within one epoch, and their record."""
        waited = feed.waited
        self.network.train()
        losses, tally = torch.zeros(steps, device=self.device), Tally()
        lr = self.optimizer.param_groups[0]["lr"]
        for index in range(steps):
            self.phases.step_begins(self.done)
            if index == 0 or self.done % self.batches.steps % self.block == 0:
                # dropout repeats after a resume, and differs between ranks and steps
                torch.manual_seed(int(np.random.SeedSequence([self.training.seed, self.done, self.peers.rank]).generate_state(1)[0]))
            losses[index] = self.step(next(feed))
            with self.phases(METRICS):
                tally += Tally.of(feed.row, self.done)
            self.done += 1
            with self.phases(OPTIMIZER):
                if self.average:
                    self.average.step_ended(self.done)
                self.schedule.step_ended()
        if self.done % self.batches.steps == 0:
            self.schedule.epoch_ended()
            if self.average:
                self.average.epoch_ended(self.done // self.batches.steps)
        # each rank's loss counts by its rows
        with self.phases(METRICS):
            parts = self.peers.gather(np.concatenate([losses.double().cpu().numpy(), tally.to_array()]))
            mean = np.mean(parts, axis=0)[:steps]
            self._require_finite(mean)
        self._losses = np.concatenate([self._losses, mean])
        self._tally += Tally.of_ranks([part[steps:] for part in parts])
        effort = meter.took(steps, pace.took(steps), feed.waited - waited)
        self._effort += effort
        taken = {"workers": self.peers.world, "loss": float(mean.mean())}
        return self._place("step", lr) | taken | effort.figures(self.training.batch_size)

    def _place(self, event: str, lr: float) -> Record:
        """Where a record stands: the epoch, the steps done in all, and the steps planned."""
        steps = self.batches.steps
        return {"event": event, "epoch": (self.done - 1) // steps + 1, "step": self.done, "steps": self.training.epochs * steps, "lr": lr}

    def _validate(self) -> Record:
        """Mean loss and scores over the validation rows of all ranks, each once; the record, which the history has now."""
        lr, started = self.optimizer.param_groups[0]["lr"], time.perf_counter()
        if self.average and self.evaluated is self.average.network:
            inputs = (batch.inputs for batch in Feed(self.batches.train(0), self.device))
            recompute_batch_norm(self.average.network, inputs, self.peers.gather)
        loss, score = self._score()
        losses = self._losses
        record = self._place("validation", lr) | {
            "loss": float(losses.mean()),
            "loss_curve": [float(part.mean()) for part in np.array_split(losses, min(_CURVE_POINTS, len(losses)))],
            **self._tally.figures(),
            **self._effort.figures(self.training.batch_size),
            "val_loss": loss,
            "score": score.chosen(self.training.select),
            **score_figures(score),
            **({"averaged": self.average.members} if self.average and self.average.members else {}),
            "val_seconds": time.perf_counter() - started,
        }
        self.schedule.validated(record["score"])
        self._losses, self._tally, self._effort = np.empty(0), Tally(), Effort()
        self.history.append(record)
        if ranked(self.history)[0] is record:
            self.best_weights = {name: tensor.detach().to("cpu", copy=True) for name, tensor in self.evaluated.state_dict().items()}
        return record

    @torch.no_grad()
    def _score(self) -> tuple[float, Score]:
        """Mean loss of the validation rows, and their scores."""
        network, targets = self.evaluated.eval(), self.batches.transform.variables.targets
        moments, by_kind = (
            DeviceMoments(self.device, self.batches.transform),
            torch.zeros((2, len(KINDS)), dtype=torch.float64, device=self.device),
        )
        for batch in Feed(self.batches.validate(), self.device):
            prediction = self.step.predict(network, batch.inputs)
            kind = self._kinds[batch.source]
            losses = self.loss(prediction, batch.targets, kind, batch.inputs).double()
            by_kind.index_add_(1, kind, torch.stack([losses, torch.ones_like(losses)]))
            moments.update(batch.inputs, batch.targets, prediction[:, : targets.width].float())
        sums, rows = np.sum(self.peers.gather(by_kind.cpu().numpy()), axis=0)
        merged = sum(
            (ErrorMoments.from_array(targets, part) for part in self.peers.gather(moments.read().to_array())), ErrorMoments.empty(targets)
        )
        if merged.count != self.batches.validation_rows:
            raise RuntimeError(f"step {self.done}: {merged.count} validation rows arrived of {self.batches.validation_rows}")
        loss = self.loss.of_kinds(sums, rows)
        if not np.isfinite(loss):
            raise UserError(f"validation loss is {loss} after step {self.done}; a lower training.optimizer.options.lr may help")
        return loss, merged.score(self.batches.transform.statistics)

    def _require_finite(self, losses: np.ndarray) -> None:
        """Raise the same UserError on all ranks when one of the last steps' losses is not finite."""
        if np.isfinite(losses).all():
            return
        flags = np.any(self.peers.gather(np.array(self.step.faults.to_array())), axis=0)
        targets = self.batches.transform.variables.targets
        columns = np.array(targets.columns)[flags[: targets.width]]
        sources = [name for name, bad in zip(self.batches.sources, flags[targets.width :], strict=True) if bad]
        first = int(np.flatnonzero(~np.isfinite(losses))[0])
        epoch, step = divmod(self.done - len(losses) + first, self.batches.steps)
        raise UserError(
            f"training loss is {losses[first]} at epoch {epoch + 1}, step {step + 1} of {self.batches.steps}, in rows of "
            f"{' and '.join(sources)}, in {_in_words(columns)}; a lower training.optimizer.options.lr, training.clip_norm or "
            f"training.precision float32 may help, in a new run"
        )


def _in_words(columns: Sequence[str]) -> str:
    if not len(columns):
        return "no single column"
    return f"columns {', '.join(columns[:3])}" + (f" and {len(columns) - 3} more" if len(columns) > 3 else "")


def score_figures(score: Score) -> Record:
    """Validation figures of a bare network."""
    targets = score.targets
    learned = float(score.r2[targets.learned].sum())
    return {name: value for name, value in score.summary().items() if name != "r2_all" and value is not None} | {
        # the physics makes the exact columns right
        "r2_scored": (int(targets.exact.sum()) + learned) / int(targets.scored.sum()),
        "leaderboard": score.leaderboard,
        "skill_by_variable": score.skill_by_variable(),
        "r2_by_variable": score.by_variable(),
        "val_rows": score.rows,
    }
