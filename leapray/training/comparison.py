"""The base and its variants side by side: their R2 with intervals, as a table, a plot and ``variants.json``."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from leapray import storage
from leapray.console import say, table
from leapray.data.shards import Prepared
from leapray.data.tasks import run_tasks
from leapray.errors import UserError
from leapray.evaluation.intervals import Difference, Interval, TimedMoments, difference, interval
from leapray.evaluation.plots import Ranked, ranking
from leapray.models.directory import load_info, load_model
from leapray.recipe import BASE, Resources
from leapray.training.loop import ranked
from leapray.training.scoring import score_network
from leapray.training.soup import EVENT

VARIANTS, PLOT = "variants.json", "variants.png"
_SCORES = "_scores"
"""The folder of scores, which no variant's name can be."""


@dataclass(frozen=True)
class Entry:
    """The base or a variant, as the table has it."""

    name: str
    state: str
    """``base``, ``finished`` or ``failed``."""
    model: str
    """Its directory; of a variant that failed, where it would be."""
    cause: str = ""
    validation_r2: float | None = None
    test_r2: float | None = None
    interval: Interval | None = None
    difference: Difference | None = None
    """From the base, on the same months."""
    epochs: int | None = None
    seconds: float | None = None
    """Of training."""
    members: Sequence[str] = ()
    """Of an average, the models that it is made of."""
    weights_sha256: str = ""
    """By which it is told that an average is one variant over again."""


def measured(entries: Sequence[Entry], directory: str, prepared: Prepared, resources: Resources) -> list[Entry]:
    """The entries with what their models' histories tell and what they score on the test months, the best first.

    Without test months the order is that of validation. A model that was scaled otherwise than the data is not scored; one that cannot be
    read has failed.
    """
    test = ["test"] if prepared.split("test") else []
    wanted = [(entry, split) for entry in entries if entry.state != "failed" for split in test]
    # a base may come from anywhere, validated on other months
    wanted += [(entry, "validation") for entry in entries if entry.name == BASE]
    scores = dict(zip([(entry.name, split) for entry, split in wanted], score_all(wanted, prepared, resources, directory), strict=True))
    base = scores.get((BASE, "test"))
    found = []
    for entry in entries:
        for split in ("validation", "test"):
            if isinstance(cause := scores.get((entry.name, split)), str):
                entry = replace(entry, state="failed" if entry.name != BASE else BASE, cause=cause)
        if entry.state != "failed":
            entry = replace(entry, **_told(entry.model), **_tested(base, scores.get((entry.name, "test")), entry.name))
        if isinstance(own := scores.get((entry.name, "validation")), TimedMoments):
            entry = replace(entry, validation_r2=own.score().learned)
        found.append(entry)
    return sorted(found, key=_rank)


def _rank(entry: Entry) -> float:
    known = entry.validation_r2 if entry.test_r2 is None else entry.test_r2
    return np.inf if known is None or entry.state == "failed" else -known


def _told(model: str) -> dict[str, Any]:
    """What a model's own history tells."""
    info = load_info(model)
    told: dict[str, Any] = {"weights_sha256": info.weights_sha256}
    if not info.history:
        return told
    best = ranked(info.history)[0]
    if best.get("event") == EVENT:
        return told | {"validation_r2": best["r2"], "members": tuple(best["members"])}
    seconds = sum(record.get("seconds", 0.0) + record.get("val_seconds", 0.0) for record in info.history)
    return told | {"validation_r2": best["r2"], "epochs": info.history[-1]["epoch"], "seconds": seconds}


Moments = TimedMoments | str | None
"""Of a model on a split; why there are none; None where they would tell nothing."""


def _tested(base: Moments, ours: Moments, name: str) -> dict[str, Any]:
    if not isinstance(ours, TimedMoments):
        return {}
    compared = {"difference": difference(base, ours)} if isinstance(base, TimedMoments) and name != BASE else {}
    return {"test_r2": ours.score().learned, "interval": interval(ours)} | compared


def score_all(
    wanted: Sequence[tuple[Entry, str]],
    prepared: Prepared,
    resources: Resources,
    directory: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Moments]:
    """Every model's moments on a split, by tasks; what an earlier start left in ``directory`` is taken."""

    def score(number: int) -> dict[str, np.ndarray] | str | None:
        entry, split = wanted[number]
        try:
            return _score(entry, split, prepared, device_of(resources), directory)
        except Exception as error:
            # one model that is damaged, or too large, must not end the comparison of the others
            return str(error) or type(error).__name__

    found = run_tasks(score, len(wanted), progress, gpus=resources.gpus_per_worker if resources.use_gpu else 0)
    return [TimedMoments.from_arrays(moments) if isinstance(moments, dict) else moments for moments in found]


def _score(entry: Entry, split: str, prepared: Prepared, device: torch.device, directory: str | None) -> dict[str, np.ndarray] | None:
    info = load_info(entry.model)
    if info.transform != prepared.transform.to_dict():
        return None
    if directory is None:
        return score_network(load_model(entry.model).emulator.network, prepared, split, device).to_arrays()
    rows = [(manifest.source, manifest.checksum or manifest.input, manifest.rows) for manifest in prepared.split(split)]
    key = hashlib.sha256(json.dumps([info.weights_sha256, prepared.transform.digest(), rows]).encode()).hexdigest()[:16]
    url = storage.join(directory, _SCORES, f"{entry.name}-{split}-{key}.npz")
    if storage.exists(url):
        return dict(np.load(io.BytesIO(storage.read_bytes(url))))
    arrays = score_network(load_model(entry.model).emulator.network, prepared, split, device).to_arrays()
    content = io.BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]
    storage.write_bytes(url, content.getvalue())
    return arrays


def device_of(resources: Resources) -> torch.device:
    """Where a task of these resources computes."""
    return torch.device("cuda" if resources.use_gpu and torch.cuda.is_available() else "cpu")


def write(name: str, entries: Sequence[Entry], directory: str) -> None:
    """``variants.json``, with places below the directory as they are below it, and the plot."""

    def place(url: str) -> str:
        return url.removeprefix(f"{directory}/")

    variants = [asdict(entry) | {"model": place(entry.model), "members": [place(url) for url in entry.members]} for entry in entries]
    storage.write_json(storage.join(directory, VARIANTS), {"name": name, "variants": variants})
    if shown := [entry for entry in map(_ranked, entries) if entry is not None]:
        storage.write_bytes(storage.join(directory, PLOT), ranking(shown, name))


def read_variants(url: str) -> dict[str, Any]:
    """What ``variants.json`` holds. Raises UserError for what is none."""
    content = storage.read_json(url)
    try:
        whole = isinstance(content["name"], str) and all({"name", "state", "model"} <= entry.keys() for entry in content["variants"])
    except (AttributeError, KeyError, TypeError):
        whole = False
    if not whole:
        raise UserError(f"{url}: not a list of variants, expected the json that finetune writes")
    return dict(content)


def _ranked(entry: Entry) -> Ranked | None:
    """A model as the plot takes it, if it was tested."""
    if entry.test_r2 is None:
        return None
    ends = (entry.interval.low, entry.interval.high) if entry.interval else None
    by = (entry.difference.value, entry.difference.low, entry.difference.high) if entry.difference else None
    return Ranked(entry.name, entry.test_r2, ends, by, entry.validation_r2, entry.name == BASE)


def show(entries: Sequence[Entry]) -> None:
    """The table in the terminal, and what failed and why."""
    tested = any(entry.test_r2 is not None for entry in entries)
    header = ("", "validation", *(("test", "from base", "95 % within") if tested else ()), "epochs", "s")
    rows = [_row(entry, tested) for entry in entries if entry.state != "failed"]
    months = "the test months chose nothing" if tested else "there are no test months to compare on"
    title = f"R2 over the learned columns, before the physics; {months}"
    table(title, header, rows)
    for entry in entries:
        if entry.cause:
            say(f"{entry.name} {entry.state}: {entry.cause}")


def _row(entry: Entry, tested: bool) -> tuple[str, ...]:
    def number(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    ends = entry.difference
    compared = (f"{ends.value:+.4f}", f"{ends.low:+.4f}, {ends.high:+.4f}") if ends else ("", "")
    measured = (number(entry.test_r2, ".4f"), *compared)
    made_of = f" (of {len(entry.members)})" if entry.members else ""
    return (
        entry.name + made_of,
        number(entry.validation_r2, ".4f"),
        *(measured if tested else ()),
        number(entry.epochs, "d"),
        number(entry.seconds, ".0f"),
    )
