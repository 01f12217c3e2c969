"""The directory of one training: recipe, records, learning curve, ``checkpoints/``, ``validated/`` and, once it is finished, ``model/``.

It is all that a training leaves behind and all that it needs to go on: whoever runs the same recipe again continues from it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from threading import Event
from typing import Any

from leapray import storage
from leapray.data.shards import trained_files
from leapray.errors import PassingError, UserError
from leapray.models.directory import INFO_FILE
from leapray.models.registry import SOLVED
from leapray.recipe import Recipe, load_recipe
from leapray.settings import difference
from leapray.training import checkpoint
from leapray.training.choices import with_defaults
from leapray.training.loop import Record

# an object store takes whole files and charges for each; a local disk does not
_LOCAL_SECONDS, _REMOTE_SECONDS = 0.5, 10.0


class Run:
    """Where the parts of a run lie."""

    def __init__(self, url: str) -> None:
        self.url = storage.absolute(url)
        self.recipe = storage.join(self.url, "recipe.yaml")
        self.data = storage.join(self.url, "data.json")
        self.metrics = storage.join(self.url, "metrics.jsonl")
        self.curve = storage.join(self.url, "learning_curve.png")
        self.checkpoints = storage.join(self.url, "checkpoints")
        self.validated = storage.join(self.url, "validated")
        self.model = storage.join(self.url, "model")
        self.interval = _LOCAL_SECONDS if storage.is_local(self.url) else _REMOTE_SECONDS

    def profile(self, rank: int) -> str:
        """Where a worker's trace of the profiler lies."""
        return storage.join(self.url, "profile", f"rank-{rank}.json")

    def validated_model(self, record: Record) -> str:
        """Where the model of a validation lies, if it is among those that the run keeps."""
        return checkpoint.step_url(self.validated, record["step"])

    def check(self, recipe: Recipe, remedy: str = "choose another training.run or remove it") -> None:
        """Raise UserError when the directory holds other things than a run, or another recipe's, or one on other files, with the difference
        and the remedy."""
        if not storage.exists(self.recipe):
            if not storage.is_empty(self.url):
                raise UserError(f"{self.url}: holds other things than a run; choose an empty training.run")
            return
        if not (self.finished or checkpoint.complete(self.checkpoints)):
            return
        try:
            theirs = decisive(load_recipe(self.recipe))
        except PassingError:
            raise
        except UserError as error:
            reason = str(error).removeprefix(f"{self.recipe}: ")
            raise UserError(
                f"{self.recipe}: not the recipe of a run ({reason}); choose another training.run or remove the directory"
            ) from error
        if changed := difference(decisive(recipe), theirs):
            raise UserError(f"{self.url}: holds a run of another recipe ({changed}); {remedy}")
        # data that was removed after a training is missed by nobody
        ours = trained_files(recipe.data)
        if ours is not None and storage.exists(self.data):
            before = storage.read_json(self.data)
            if other := [key for key in ours if not isinstance(before, dict) or before.get(key) != ours[key]]:
                raise UserError(
                    f"{self.url}: was trained on other files, for {recipe.data.prepared} was prepared anew ({', '.join(other)}); {remedy}"
                )

    def claim(self, recipe: Recipe) -> None:
        """Mark the directory as this recipe's, on these files. Raises UserError as :meth:`check` does."""
        self.check(recipe)
        storage.write_bytes(self.recipe, recipe.to_yaml().encode())
        if (files := trained_files(recipe.data)) is not None:
            storage.write_json(self.data, files)

    @property
    def finished(self) -> bool:
        """The model is written, which is the last thing a training does."""
        return storage.exists(storage.join(self.model, INFO_FILE))

    def records(self) -> list[Record]:
        """What is logged now: every validation's record, then those of the steps since the last one. Raises UserError if it is damaged."""
        try:
            records = [dict(json.loads(line)) for line in self.lines()]
        except (ValueError, TypeError) as error:
            raise UserError(f"{self.metrics}: damaged, expected a record of json in every line") from error
        if any(record.get("event") == "validation" and "score" not in record for record in records):
            raise UserError(f"{self.metrics}: written by an earlier leapray, before skill; train again in another training.run")
        return records

    def lines(self) -> list[bytes]:
        """The records as they are written."""
        return storage.read_bytes(self.metrics).splitlines() if storage.exists(self.metrics) else []


_INDIFFERENT = {"run", "keep_best", "keep_last", "checkpoint_seconds", "profile", "trackers"}


def decisive(recipe: Recipe) -> dict[str, Any]:
    """A recipe's plain values without those that do not change the model: its name, its place, what it keeps, and what it runs on.

    Lanes stay, since they decide which rows share a step.
    """
    values = with_defaults(recipe).to_dict()
    training = {key: value for key, value in values["training"].items() if key not in _INDIFFERENT}
    if recipe.network.name in SOLVED:
        return {"data": values["data"], "network": values["network"], "training": {key: training.get(key) for key in ("select", "sources")}}
    return {"data": values["data"], "network": values["network"], "training": training | {"lanes": recipe.lanes}}


class RecordLog:
    """Writer of ``metrics.jsonl``, one record a line. The file is replaced as a whole, so a reader never sees half a line.

    The records of steps make way for that of the validation which follows them, so that a long run does not write ever more.
    """

    def __init__(self, run: Run, history: Sequence[Record]) -> None:
        """Continue after the validations of ``history``; what was logged beyond them is going to happen again."""
        self._run = run
        self._validations = [_line(record) for record in history]
        self._steps: list[str] = []
        self._write()

    def add(self, record: Record) -> None:
        """Log a record; a validation's is written at once, others with what follows when the last write is too recent."""
        if record["event"] == "validation":
            self._validations.append(_line(record))
            self._steps.clear()
        else:
            self._steps.append(_line(record))
        if record["event"] == "validation":
            self._write()
        elif time.monotonic() >= self._next:
            # whatever is logged next takes these with it
            with suppress(PassingError):
                self._write()

    def _write(self) -> None:
        try:
            storage.write_bytes(self._run.metrics, "".join(self._validations + self._steps).encode())
        finally:
            self._next = time.monotonic() + self._run.interval


def _line(record: Record) -> str:
    return json.dumps(record, allow_nan=False) + "\n"


@contextmanager
def following(run: Run, progress: Callable[[Record], None]) -> Iterator[None]:
    """Feed ``progress`` what is logged during the block, by whichever process: every validation's record, and most steps', as they come.

    What a restarted worker does again is fed again. An exception of ``progress`` is raised when the block ends.
    """
    stop, seen = Event(), set(run.lines())

    def feed() -> None:
        nonlocal seen
        last_round = False
        while not last_round:
            last_round = stop.wait(run.interval)
            try:
                lines = run.lines()
            except (OSError, UserError):
                # a training that goes well does not end because its log could not be read; the next round has it all
                continue
            for line in lines:
                if line not in seen:
                    progress(json.loads(line))
            seen = set(lines)

    with ThreadPoolExecutor(1) as pool:
        feeding = pool.submit(feed)
        try:
            yield
        finally:
            stop.set()
        feeding.result()
