"""Rows divided among threads of this process, each with one intra-op thread.

A pass through a recurrent network consists of hundreds of short operators. PyTorch by default divides each operator among its intra-op
threads, which wait for each other after each one. One other busy process is then enough to slow the pass ten times. Threads that each
take some of the rows through the whole network wait once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from types import TracebackType
from typing import Self, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")


def divides_rows(network: nn.Module) -> bool:
    """Whether threads divide the rows of this network on a CPU by default: it says ``recurrent = True``, as our recurrent networks do."""
    return getattr(network, "recurrent", False) is True


class RowThreads:
    """``count`` threads, the calling one among them, for the length of a ``with`` block. In the block each has one intra-op thread.

    All calls within the block must come from the thread that entered it.
    """

    def __init__(self, count: int) -> None:
        self.count = count

    def __enter__(self) -> Self:
        self._intra_op = torch.get_num_threads()
        # new threads begin with the number that was set last in the process
        torch.set_num_threads(1)
        self._pool = ThreadPoolExecutor(max(self.count - 1, 1), thread_name_prefix="rows", initializer=_one_intra_op_thread)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._pool.shutdown()
        torch.set_num_threads(self._intra_op)

    def map(self, function: Callable[[int, slice], T], rows: int) -> list[T]:
        """``function(number, share)`` for each thread's share of so many rows, in the order of the rows; no share is empty.

        What it raises is raised here, after all threads have finished.
        """
        shares = [slice(rows * number // self.count, rows * (number + 1) // self.count) for number in range(self.count)]
        first, *others = enumerate(share for share in shares if share.stop > share.start)
        begun = [self._pool.submit(function, *one) for one in others]
        try:
            own = function(*first)
        finally:
            wait(begun)
        return [own, *(one.result() for one in begun)]

    def predict(self, network: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
        """Outputs of a network for inputs ``(b, i)``, without gradients. As the caller is or is not, threads are in inference mode."""
        inference = torch.is_inference_mode_enabled()

        def forward(number: int, share: slice) -> Tensor:
            with torch.inference_mode(inference), torch.no_grad():
                return network(inputs[share])

        return torch.cat(self.map(forward, len(inputs)))


@contextmanager
def forward_pass(network: nn.Module, device: torch.device, divide: bool | None = None) -> Iterator[Callable[[Tensor], Tensor]]:
    """The network's forward pass without gradients, ``(b, i)`` to ``(b, o)``, for the length of the block.

    On a CPU the intra-op threads of the calling thread divide its rows, if ``divide`` says so, by default if :func:`divides_rows` does.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1 or not (divides_rows(network) if divide is None else divide):
        with torch.no_grad():
            yield network
        return
    with RowThreads(threads) as pool:
        yield lambda inputs: pool.predict(network, inputs)


def _one_intra_op_thread() -> None:
    # PyTorch sets a thread's number once before it is first used
    torch.get_num_threads()
    torch.set_num_threads(1)
