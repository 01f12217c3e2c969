"""Stages that are done once: each remembers of what its output was made, and is done again when that changes."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from leapray import storage
from leapray.cluster import session
from leapray.console import say
from leapray.errors import UserError


@dataclass(frozen=True)
class Stage:
    """One step of the road."""

    name: str
    output: str
    """What it writes last."""
    made_of: Mapping[str, Any]
    """The settings that decide its output, as plain values."""
    run: Callable[[], str]
    """Does it, and says in a few words what came of it."""
    after: Sequence[str] = ()
    """The stages whose output it takes."""
    reads: Sequence[str] = ()
    """Files and folders beside, whose content decides too."""
    makes: Sequence[str] = ()
    """Folders of its own that hold nothing once its settings change. What was trained is not among them: it is not removed."""

    def key(self, record: Mapping[str, Any]) -> str:
        """Digest of what decides its output: its settings, when the stages before it were done, and what it reads."""
        before = [record.get(name, {}).get("done") for name in self.after]
        read = [storage.fingerprint_below(url) for url in self.reads]
        return hashlib.sha256(json.dumps([self.made_of, before, read], sort_keys=True, default=str).encode()).hexdigest()[:16]

    def finished(self, record: Mapping[str, Any], key: str) -> bool:
        """Whether it was done with the same settings after the same stages, and its output is there."""
        noted = record.get(self.name, {})
        return bool(noted.get("done")) and noted["key"] == key and storage.exists(self.output)


@dataclass
class Done:
    """Which stages were run, and which were finished already."""

    ran: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)


def run_stages(stages: Sequence[Stage], notes: str, only: str | None = None, elsewhere: Callable[[str], None] | None = None) -> Done:
    """Run the stages, in their order, that are not finished, or one of them alone by its name, on the cluster; ``notes`` remembers them.

    ``elsewhere`` has a stage done by another process, which notes it. Raises UserError for a stage that is none, and whatever a stage
    raises; what was finished before it stays.
    """
    if only is not None and only not in [stage.name for stage in stages]:
        raise UserError(f"--stage {only!r} is not of this experiment, expected one of {', '.join(stage.name for stage in stages)}")
    record = _Record(notes)
    done = Done()
    with ExitStack() as stack:
        for stage in stages:
            if only not in (None, stage.name):
                continue
            key = stage.key(record.noted)
            if stage.finished(record.noted, key):
                done.kept.append(stage.name)
                say(f"{stage.name}: {record.noted[stage.name]['result']} (kept)")
                continue
            if elsewhere is not None:
                elsewhere(stage.name)
                record = _Record(notes)
            else:
                if not done.ran:
                    stack.enter_context(session.connected())
                seconds = _do(stage, key, record)
                say(f"{stage.name}: {record.noted[stage.name]['result']}, {seconds:.0f} s")
            done.ran.append(stage.name)
    return done


def _do(stage: Stage, key: str, record: _Record) -> float:
    """Do a stage and note it; the seconds that it took. What it made of other settings is removed first."""
    started = time.monotonic()
    if stage.makes and record.noted.get(stage.name, {}).get("key", key) != key:
        for place in stage.makes:
            storage.remove(place)
        # a stage that is cut off from here on goes on with what it made
        record.note(stage.name, {"key": key, "result": "not finished", "done": None})
    result = stage.run()
    seconds = round(time.monotonic() - started, 1)
    record.note(stage.name, {"key": key, "result": result, "seconds": seconds, "done": datetime.now(UTC).isoformat()})
    return seconds


class _Record:
    """What is noted of each stage that was done: a file for each, so that stages which run side by side lose nothing."""

    def __init__(self, url: str) -> None:
        self._url = url
        notes = [storage.read_json(file) for file in storage.list_files(url, ".json")]
        self.noted: dict[str, dict[str, Any]] = {note["stage"]: note for note in notes}

    def note(self, stage: str, values: Mapping[str, Any]) -> None:
        """Note a stage, in the place of an earlier note."""
        self.noted[stage] = {"stage": stage, **values}
        storage.write_json(storage.join(self._url, f"{stage.replace(' ', '-')}.json"), self.noted[stage])
