"""Numbered tasks on Ray Data, with their results in order."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from typing import TypeVar

import ray.data

from leapray.cluster.nodes import autoscaled, parallelism
from leapray.cluster.session import user_errors

T = TypeVar("T")


def run_tasks(
    function: Callable[[int], T], count: int, progress: Callable[[int, int], None] | None = None, gpus: float = 0.0
) -> Iterator[T]:
    """Run ``function(0) … function(count - 1)`` on the cluster and give their results in that order, each a picklable object.

    ``progress`` is called with the tasks done and the tasks in all. With ``gpus`` each task has that much of a GPU to itself.
    """
    if not count:
        return
    dataset = ray.data.range(count, override_num_blocks=count)
    dataset.context.execution_options.preserve_order = True
    # logical CPUs may be more than there are, and every task holds much memory; a cluster that grows only does so for tasks that wait
    places = max(int(parallelism(use_gpu=True) / gpus), 1) if gpus else parallelism()
    together = count if autoscaled() else places
    results = dataset.map(
        lambda row: {"result": pickle.dumps(function(int(row["id"])))}, concurrency=min(count, together), num_gpus=gpus or None
    )
    with user_errors():
        for done, row in enumerate(results.iter_rows(), start=1):
            if progress is not None:
                progress(done, count)
            yield pickle.loads(row["result"])
