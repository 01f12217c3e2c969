"""The base and its variants side by side: their skill and R2 with intervals, as a table, a plot and ``variants.json``."""

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
from leapray.console import digits, say, table
from leapray.data.shards import Prepared
from leapray.data.tasks import run_tasks
from leapray.data.transform import Transform
from leapray.errors import UserError
from leapray.evaluation.intervals import Difference, Interval, TimedMoments, difference, interval
from leapray.evaluation.plots import Ranked, ranking
from leapray.models.directory import load_info, load_model
from leapray.recipe import BASE, Resources, Select
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
    validation_skill: float | None = None
    validation_r2: float | None = None
    test_skill: float | None = None
    attainable: float | None = None
    """Skill of a perfect emulator on the test months."""
    test_r2: float | None = None
    interval: Interval | None = None
    """Of the test score that ranks, which is the skill or, where the recipe says so, R2."""
    difference: Difference | None = None
    """Of that score from the base's, on the same months."""
    epochs: int | None = None
    seconds: float | None = None
    """Of training."""
    members: Sequence[str] = ()
    """Of an average, the models that it is made of."""
    weights_sha256: str = ""
    """By which it is told that an average is one variant over again."""

    def validation(self, select: Select) -> float | None:
        """The validation score that chooses."""
        return self.validation_skill if select == "skill" else self.validation_r2

    def test(self, select: Select) -> float | None:
        """The test score that ranks."""
        return self.test_skill if select == "skill" else self.test_r2


def measured(entries: Sequence[Entry], directory: str, prepared: Prepared, resources: Resources, select: Select) -> list[Entry]:
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
            entry = replace(entry, **_told(entry.model), **_tested(base, scores.get((entry.name, "test")), entry.name, select))
        if isinstance(own := scores.get((entry.name, "validation")), TimedMoments):
            score = own.score()
            entry = replace(entry, validation_skill=score.skill, validation_r2=score.learned)
        found.append(entry)
    return sorted(found, key=lambda entry: _rank(entry, select))


def _rank(entry: Entry, select: Select) -> float:
    known = entry.validation(select) if entry.test(select) is None else entry.test(select)
    return np.inf if known is None or entry.state == "failed" else -known


def _told(model: str) -> dict[str, Any]:
    """What a model's own history tells."""
    info = load_info(model)
    told: dict[str, Any] = {"weights_sha256": info.weights_sha256}
    if not info.history:
        return told
    best = ranked(info.history)[0]
    told |= {"validation_skill": best["skill"], "validation_r2": best["r2"]}
    if best.get("event") == EVENT:
        return told | {"members": tuple(best["members"])}
    seconds = sum(record.get("seconds", 0.0) + record.get("val_seconds", 0.0) for record in info.history)
    return told | {"epochs": info.history[-1]["epoch"], "seconds": seconds}


Moments = TimedMoments | str | None
"""Of a model on a split; why there are none; None where they would tell nothing."""


def _tested(base: Moments, ours: Moments, name: str, select: Select) -> dict[str, Any]:
    if not isinstance(ours, TimedMoments):
        return {}
    compared = {"difference": difference(base, ours, select)} if isinstance(base, TimedMoments) and name != BASE else {}
    score = ours.score()
    figures = {"test_skill": score.skill, "attainable": score.attainable, "test_r2": score.learned}
    return figures | {"interval": interval(ours, select)} | compared


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
    transform = Transform.from_dict(info.transform, f"{entry.model}: transform")
    if transform.input_digest() != prepared.transform.input_digest():
        return None

    def scored() -> dict[str, np.ndarray]:
        return score_network(load_model(entry.model).emulator.network, prepared, split, device, transform).to_arrays()

    if directory is None:
        return scored()
    rows = [(manifest.source, manifest.checksum or manifest.input, manifest.rows) for manifest in prepared.split(split)]
    key = hashlib.sha256(json.dumps([info.weights_sha256, transform.digest(), prepared.transform.digest(), rows]).encode()).hexdigest()[:16]
    url = storage.join(directory, _SCORES, f"{entry.name}-{split}-{key}.npz")
    if storage.exists(url):
        return dict(np.load(io.BytesIO(storage.read_bytes(url))))
    arrays = scored()
    content = io.BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]
    storage.write_bytes(url, content.getvalue())
    return arrays


def device_of(resources: Resources) -> torch.device:
    """Where a task of these resources computes."""
    return torch.device("cuda" if resources.use_gpu and torch.cuda.is_available() else "cpu")


def write(name: str, entries: Sequence[Entry], directory: str, select: Select) -> None:
    """``variants.json``, with places below the directory as they are below it, and the plot."""

    def place(url: str) -> str:
        return url.removeprefix(f"{directory}/")

    variants = [asdict(entry) | {"model": place(entry.model), "members": [place(url) for url in entry.members]} for entry in entries]
    storage.write_json(storage.join(directory, VARIANTS), {"name": name, "select": select, "variants": variants})
    if shown := [ranked for entry in entries if (ranked := _ranked(entry, select)) is not None]:
        storage.write_bytes(storage.join(directory, PLOT), ranking(shown, name, select))


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


def _ranked(entry: Entry, select: Select) -> Ranked | None:
    """A model as the plot takes it, if it was tested."""
    if (test := entry.test(select)) is None:
        return None
    ends = (entry.interval.low, entry.interval.high) if entry.interval else None
    by = (entry.difference.value, entry.difference.low, entry.difference.high) if entry.difference else None
    return Ranked(entry.name, test, ends, by, entry.validation(select), entry.name == BASE)


def show(entries: Sequence[Entry], select: Select) -> None:
    """The table in the terminal, and what failed and why."""
    tested = any(entry.test_r2 is not None for entry in entries)
    compared = f"{'skill' if select == 'skill' else 'R2'} less base"
    header = (
        "",
        "validation skill",
        *(("test skill", "test R2", compared, "95 % interval") if tested else ("validation R2",)),
        "epochs",
        "s",
    )
    rows = [_row(entry, tested) for entry in entries if entry.state != "failed"]
    months = "test months were not used for model selection" if tested else "there are no test months to compare on"
    attainable = next((entry.attainable for entry in entries if entry.attainable is not None), None)
    of = "" if attainable is None else f" of an attainable {digits(attainable)}"
    table(f"Skill{of} and R2 over the learned columns, before the physics; {months}", header, rows)
    for entry in entries:
        if entry.cause:
            say(f"{entry.name} {entry.state}: {entry.cause}")


def _row(entry: Entry, tested: bool) -> tuple[str, ...]:
    ends = entry.difference
    compared = (digits(ends.value, "+"), f"{digits(ends.low, '+')}, {digits(ends.high, '+')}") if ends else ("", "")
    made_of = f" (of {len(entry.members)})" if entry.members else ""
    return (
        entry.name + made_of,
        digits(entry.validation_skill),
        *((digits(entry.test_skill), digits(entry.test_r2), *compared) if tested else (digits(entry.validation_r2),)),
        "" if entry.epochs is None else str(entry.epochs),
        "" if entry.seconds is None else f"{entry.seconds:.0f}",
    )
