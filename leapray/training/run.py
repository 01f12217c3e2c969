"""The directory of one training: ``recipe.yaml``, ``metrics.jsonl``, ``checkpoints/`` and, once it is finished, ``model/``.

It is all that a training leaves behind and all that it needs to go on: whoever runs the same recipe again continues from it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event
from typing import Any

import yaml

from leapray import storage
from leapray.errors import UserError
from leapray.models.directory import INFO_FILE
from leapray.recipe import Recipe, difference
from leapray.training.loop import Record

# an object store takes whole files and charges for each; a local disk does not
_LOCAL_SECONDS, _REMOTE_SECONDS = 0.5, 10.0


class Run:
    """Where the parts of a run lie."""

    def __init__(self, url: str) -> None:
        self.url = storage.absolute(url)
        self.recipe = storage.join(self.url, "recipe.yaml")
        self.metrics = storage.join(self.url, "metrics.jsonl")
        self.checkpoints = storage.join(self.url, "checkpoints")
        self.model = storage.join(self.url, "model")
        self.interval = _LOCAL_SECONDS if storage.is_local(self.url) else _REMOTE_SECONDS

    def check(self, recipe: Recipe) -> None:
        """Raise UserError, with the difference, when the directory is another recipe's."""
        if not storage.exists(self.recipe):
            return
        try:
            theirs = yaml.safe_load(storage.read_bytes(self.recipe))
            changed = difference(_decisive(recipe.to_dict()), _decisive(theirs))
        except (yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
            raise UserError(f"{self.recipe}: not the recipe of a run; choose another training.run or remove the directory") from error
        if changed:
            raise UserError(f"{self.url}: holds a run of another recipe ({changed}); choose another training.run or remove it")

    def claim(self, recipe: Recipe) -> None:
        """Mark the directory as this recipe's. Raises UserError as :meth:`check` does."""
        self.check(recipe)
        if not storage.exists(self.recipe):
            storage.write_bytes(self.recipe, recipe.to_yaml().encode())

    @property
    def finished(self) -> bool:
        """The model is written, which is the last thing a training does."""
        return storage.exists(storage.join(self.model, INFO_FILE))

    def records(self) -> list[Record]:
        """What was logged so far, oldest first."""
        if not storage.exists(self.metrics):
            return []
        return [json.loads(line) for line in storage.read_bytes(self.metrics).splitlines()]


def _decisive(values: dict[str, Any]) -> dict[str, Any]:
    """A recipe's plain values without those that do not change the model: its name, its place, and what it runs on.

    Lanes stay, since they decide which rows share a step.
    """
    training = {key: value for key, value in values["training"].items() if key != "run"}
    training["lanes"] = training["lanes"] or max(values["resources"]["workers"], 1)
    return {"data": values["data"], "network": values["network"], "training": training}


class RecordLog:
    """Writer of ``metrics.jsonl``, one record a line. The file is replaced as a whole, so a reader never sees half a line."""

    def __init__(self, run: Run, epochs: int) -> None:
        """Continue after ``epochs`` finished ones; what was logged beyond them is going to happen again."""
        self._run = run
        self._lines = [json.dumps(record) for record in run.records() if record["epoch"] <= epochs]
        self._next = 0.0

    def add(self, record: Record) -> None:
        """Log a record; an epoch's is written at once, others with what follows when the last write is too recent."""
        self._lines.append(json.dumps(record, allow_nan=False))
        if record["event"] == "epoch" or time.monotonic() >= self._next:
            storage.write_bytes(self._run.metrics, ("\n".join(self._lines) + "\n").encode())
            self._next = time.monotonic() + self._run.interval


@contextmanager
def following(run: Run, progress: Callable[[Record], None] | None) -> Iterator[None]:
    """Feed ``progress`` each record that is logged during the block, by whichever process, once and in order.

    Records that a restarted worker logs a second time are passed over. An exception of ``progress`` is raised when the block ends.
    """
    if progress is None:
        yield
        return
    stop, place = Event(), max((_place(record) for record in run.records()), default=(0, 0, False))

    def feed() -> None:
        nonlocal place
        while True:
            last_round = stop.wait(run.interval)
            for record in run.records():
                if _place(record) > place:
                    place = _place(record)
                    progress(record)
            if last_round:
                return

    with ThreadPoolExecutor(1) as pool:
        feeding = pool.submit(feed)
        try:
            yield
        finally:
            stop.set()
        feeding.result()


def _place(record: Record) -> tuple[int, int, bool]:
    return record["epoch"], record["step"], record["event"] == "epoch"
