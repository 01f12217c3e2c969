"""The processes of a training: one alone, or Ray Train's workers; what they agree on, and how often they are started again (Ray)."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import ray.train
import ray.train.collective
import ray.train.torch
import torch
from torch import nn

from leapray.cluster import session
from leapray.cluster.ray_compat import preempted
from leapray.errors import PassingError
from leapray.training import checkpoint
from leapray.training.loop import Record
from leapray.training.run import Run

_TRIES = 5
"""Deaths of workers in a row, with no new checkpoint between them, that end a training."""
T = TypeVar("T")


class Alone:
    """The one process of a training without workers, which is also what a trial of Ray Tune must be: Ray Train's local mode refuses it."""

    rank, world, on_this_node = 0, 1, 1

    def device(self, gpu: bool) -> torch.device:
        return torch.device("cuda" if gpu else "cpu")

    def wrap(self, network: nn.Module, device: torch.device) -> nn.Module:
        """The network on its device, its gradients exchanged between ranks."""
        return network.to(device)

    def agree(self, value: T) -> T:
        """What rank 0 says."""
        return value

    def gather(self, array: np.ndarray, device: torch.device) -> list[np.ndarray]:
        """Every rank's array of one shape, in rank order."""
        return [array]

    def warned(self) -> bool:
        """Whether a node of this training is about to be taken away that nobody had told of; all ranks ask together."""
        return False

    def report(self, record: Record) -> None:
        """Tell Ray of a validation, all ranks together."""


class Worker(Alone):
    """One of Ray Train's workers."""

    def __init__(self) -> None:
        context = ray.train.get_context()
        self.rank, self.world, self.on_this_node = context.get_world_rank(), context.get_world_size(), context.get_local_world_size()
        self._leaving: set[str] = set()

    def device(self, gpu: bool) -> torch.device:
        return ray.train.torch.get_device() if gpu else torch.device("cpu")

    def wrap(self, network: nn.Module, device: torch.device) -> nn.Module:
        return ray.train.torch.prepare_model(network, move_to_device=device)

    def agree(self, value: T) -> T:
        agreed: T = ray.train.collective.broadcast_from_rank_zero(value)
        return agreed

    def gather(self, array: np.ndarray, device: torch.device) -> list[np.ndarray]:
        if self.world == 1:
            return [array]
        ours = torch.from_numpy(array).to(device)
        parts = [torch.empty_like(ours) for _ in range(self.world)]
        torch.distributed.all_gather(parts, ours)
        return [part.cpu().numpy() for part in parts]

    def warned(self) -> bool:
        notice = ray.train.get_preemption_info()
        leaving = set(notice.preempted_node_ids) if notice else set()
        new, self._leaving = leaving - self._leaving, self._leaving | leaving
        return bool(new)

    def report(self, record: Record) -> None:
        ray.train.report({key: value for key, value in record.items() if isinstance(value, int | float)})


class Persistence(ray.train.UserCallback):
    """How long a training is taken up again: as long as it gets on, however often its workers are taken away.

    It ends at a user's mistake, which a restarted worker would only make again, and after five deaths without a new checkpoint, of a store
    that does not answer too. Deaths of which notice was given do not count: Ray tells of them at every poll, several times a second, until
    the node has gone.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._newest: list[list[str]] = []

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Raises the UserError among the exceptions, or the first of them when the training does not get on."""
        for error in worker_exceptions.values():
            if (found := session.find_user_error(error)) and not isinstance(found, PassingError):
                raise found
        if any(preempted(error) for error in worker_exceptions.values()):
            return
        self._newest.append(checkpoint.complete(self._run.checkpoints)[-1:])
        if self._newest[-_TRIES:].count(self._newest[-1]) == _TRIES:
            raise next(iter(worker_exceptions.values()))
