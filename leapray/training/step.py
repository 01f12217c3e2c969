"""One step of a training: forward, backward and update on one batch, without waiting for the device."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from leapray.models.row_threads import RowThreads, divides_rows
from leapray.recipe import CpuThreading, Training
from leapray.training.feed import OnDevice
from leapray.training.losses import Loss
from leapray.training.phases import BACKWARD, FORWARD, LOSS, METRICS, OPTIMIZER, UNTIMED, Phases
from leapray.training.row_gradients import RowGradients, cannot_divide

log = logging.getLogger(__name__)
_DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Step:
    """The update of a network by one batch, in the precision and the parts that a recipe asks for.

    ``kinds`` (sources,) int64 gives each source's kind, for losses that tell them apart. ``world`` processes share every step's rows, one
    more than the other where they do not divide.

    ``cpu_threading`` says what the threads of a CPU divide, within :meth:`threads`: the rows of a pass, or each of its operators. By
    default it is the rows of a recurrent network. A step that cannot divide its rows (:func:`cannot_divide`) divides its operators.
    ``phases`` get the parts of the step.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: Loss,
        optimizer: Optimizer,
        training: Training,
        kinds: Tensor,
        world: int = 1,
        cpu_threading: CpuThreading | None = None,
        phases: Phases = UNTIMED,
    ) -> None:
        self.network = network
        self.loss = loss
        self.optimizer = optimizer
        self.device = kinds.device
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=training.precision == "fp16")
        self.faults = Faults(loss, len(kinds))
        self._kinds, self._phases = kinds, phases
        self._even_rows = training.batch_size / world
        self._dtype = _DTYPES[training.precision]
        self._parts = training.accumulate
        self._clip_norm = training.clip_norm
        self._parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self._divides = self.device.type == "cpu" and self._should_divide(training, cpu_threading)
        self._threads: RowThreads | None = None
        self._gradients: RowGradients | None = None

    def _should_divide(self, training: Training, asked: CpuThreading | None) -> bool:
        if asked == "operators" or (asked is None and not divides_rows(_bare(self.network))):
            return False
        if reason := cannot_divide(self.network, training):
            log.log(logging.WARNING if asked else logging.INFO, "CPU threads divide operators, not rows: %s", reason)
            return False
        return True

    @contextmanager
    def threads(self) -> Iterator[None]:
        """For the length of the block, the process's intra-op threads divide the rows of every pass, where this step does that."""
        count = torch.get_num_threads()
        if not self._divides or count == 1:
            yield
            return
        log.info("%d threads divide the rows of every step", count)
        with RowThreads(count) as self._threads:
            self._gradients = RowGradients(self.network, self.loss, self._parameters, self._threads, self._phases)
            try:
                yield
            finally:
                self._threads = self._gradients = None

    @torch.no_grad()
    def predict(self, network: nn.Module, inputs: Tensor) -> Tensor:
        """Outputs of a network for inputs ``(b, i)`` in this step's precision and, within :meth:`threads`, by its threads."""
        if self._threads is not None:
            return self._threads.predict(network, inputs)
        with self.autocast():
            prediction: Tensor = network(inputs)
        return prediction

    def __call__(self, batch: OnDevice) -> Tensor:
        """Update the network; the batch's loss, (), still on the device: its mean over the processes is that of the step's rows."""
        kind = self._kinds[batch.source]
        weights = self.loss.row_weights(len(kind), kind, self.device)
        if len(kind) != self._even_rows:
            # gradients are averaged over processes as if all had equally many rows
            weights = weights * (len(kind) / self._even_rows)
        total = torch.zeros((), device=self.device)
        for part in range(self._parts):
            # every parts-th row, so that each part has its share of every source
            rows = slice(part, None, self._parts)
            inputs, targets, source = (tensor[rows] for tensor in batch)
            if self._gradients is not None:
                loss, by_row, prediction = self._gradients.add(inputs, targets, kind[rows], weights[rows])
            else:
                loss, by_row, prediction = self._backward(inputs, targets, kind[rows], weights[rows], last=part == self._parts - 1)
            total += loss
            with self._phases(METRICS):
                self.faults.look(by_row, prediction, targets, source)
        with self._phases(OPTIMIZER):
            if self._clip_norm is not None:
                self.scaler.unscale_(self.optimizer)
                nn.utils.clip_grad_norm_(self._parameters, self._clip_norm)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.optimizer.zero_grad(set_to_none=True)
        return total

    def _backward(self, inputs: Tensor, targets: Tensor, kind: Tensor, weights: Tensor, last: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Add the gradient of some rows' loss (), their weighted sum of losses (b,); these two, and the network's output (b, o)."""
        with self._exchanging(last):
            with self._phases(FORWARD), self.autocast():
                prediction = self.network(inputs)
            with self._phases(LOSS):
                by_row = self.loss(prediction, targets, kind, inputs)
                loss = torch.dot(by_row, weights)
            with self._phases(BACKWARD):
                torch.autograd.backward(self.scaler.scale(loss))
        return loss.detach(), by_row.detach(), prediction.detach()

    def autocast(self) -> AbstractContextManager[None]:
        """What the network runs in."""
        return nullcontext() if self._dtype is torch.float32 else torch.autocast(self.device.type, self._dtype)

    def _exchanging(self, last: bool) -> AbstractContextManager[None]:
        """Gradients of all parts are exchanged between ranks at once, with the last."""
        return nullcontext() if last or not isinstance(self.network, DistributedDataParallel) else self.network.no_sync()


def _bare(network: nn.Module) -> nn.Module:
    return network.module if isinstance(network, DistributedDataParallel) else network


class Faults:
    """Where a loss was first not finite: by target column and by source, kept on the device until someone asks.

    Columns that are not the loss's may be what they like.
    """

    def __init__(self, loss: Loss, sources: int) -> None:
        device, self._width = loss.columns.device, loss.width
        self._found = torch.zeros((), dtype=torch.bool, device=device)
        self._seen = torch.zeros(self._width, dtype=torch.bool, device=device).index_fill_(0, loss.columns, True)
        self._columns = torch.zeros_like(self._seen)
        self._sources = torch.zeros(sources, device=device)

    @torch.no_grad()
    def look(self, by_row: Tensor, prediction: Tensor, targets: Tensor, source: Tensor) -> None:
        """Take note of a part of a batch: losses (b,), prediction (b, t or more), targets (b, t), source (b,)."""
        bad = ~by_row.isfinite()
        first = bad.any() & ~self._found
        error = prediction[:, : self._width].float() - targets
        columns = ~error.square().sum(dim=0).isfinite()
        if prediction.shape[1] > self._width:
            columns |= ~prediction[:, self._width :].float().square().sum(dim=0).isfinite()
        self._columns |= first & columns & self._seen
        self._sources += first * torch.zeros_like(self._sources).index_add_(0, source, bad.float())
        self._found |= first

    def to_array(self) -> list[bool]:
        """One flag for each target column, then one for each source."""
        return [*self._columns.tolist(), *(self._sources > 0).tolist()]
