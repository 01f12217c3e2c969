"""Where files are fetched from: what is chosen of a source, how it is copied, and at what rate."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import numpy as np

from leapray import storage
from leapray.climsim.calendar import Month, month_of_step, parse_file_name
from leapray.data.flat import Selection
from leapray.data.flat.places import month_of_path
from leapray.errors import UserError
from leapray.evaluation.tables import is_table
from leapray.faults import shown

_RANGE = 16 * 2**20
"""Bytes asked for at once: what a thread holds, and what a failed request loses."""


def takes(selection: Selection, path: str, source: str = "") -> bool | None:
    """Whether a file of a source is chosen: one of a netCDF pair by its step, a flat file by the month in its path, or if no month is
    asked for. None if it is neither, or if a month is asked for and its path tells none."""
    if parsed := parse_file_name(path):
        return bool(selection.takes_steps(np.array([parsed[1]]))[0])
    if not is_table(path):
        return None
    month = month_of_path(path, source)
    return _in_time(selection, month) if month else None if selection.by_month else True


def month_of_file(path: str, source: str = "") -> Month | None:
    """The month of a file of a netCDF pair, or the one in a flat file's path."""
    parsed = parse_file_name(path)
    return month_of_step(parsed[1]) if parsed else month_of_path(path, source)


def _enters(selection: Selection, folder: str, source: str) -> bool:
    """Whether a folder may hold chosen files: not one that is named like a month outside of them."""
    name, month = folder.rsplit("/", 1)[-1], month_of_path(folder, source)
    return month is None or not (name == str(month) or name.startswith("month=")) or _in_time(selection, month)


def _in_time(selection: Selection, month: Month) -> bool:
    return month.first_step in selection.steps


class Throttle:
    """Bytes per second and pauses, for all threads together. ``rate`` None is as fast as it goes."""

    def __init__(
        self, rate: float | None = None, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], object] | None = None
    ) -> None:
        self._stopped = threading.Event()
        self._rate, self._clock, self._sleep = rate, clock, sleep or self._stopped.wait
        self._lock = threading.Lock()
        self._paid = self._resumed = clock()

    def take(self, count: int) -> None:
        """Wait until ``count`` bytes may be asked for: those taken before are paid for, and nobody has to pause."""
        with self._lock:
            start = max(self._paid, self._clock())
            self._paid = start + (count / self._rate if self._rate else 0)
        self._wait(lambda: max(start, self._resumed))

    def pause(self, seconds: float) -> None:
        """Keep every thread from asking for more, for this long."""
        with self._lock:
            self._resumed = max(self._resumed, self._clock() + seconds)
        self._wait(lambda: self._resumed)

    def stop(self) -> None:
        """End every wait, and whoever asks from now on, by an InterruptedError."""
        self._stopped.set()

    def _wait(self, until: Callable[[], float]) -> None:
        while not self._stopped.is_set() and (left := until() - self._clock()) > 0:
            self._sleep(left)
        if self._stopped.is_set():
            raise InterruptedError


@dataclass(frozen=True)
class Chosen:
    """The bytes of each chosen file by name, the names of those that hold no data or do not tell whether they are chosen, and the months
    of the chosen ones."""

    sizes: dict[str, int] = field(default_factory=dict)
    passed_over: list[str] = field(default_factory=list)
    months: set[Month | None] = field(default_factory=set)

    def add(self, selection: Selection, name: str, size: Callable[[], int], path: str, source: str = "") -> None:
        """Take in one file, whose ``size`` is only asked for if it is chosen."""
        taken = takes(selection, path, source)
        if taken:
            self.sizes[name] = size()
            self.months.add(month_of_file(path, source))
        elif taken is None:
            self.passed_over.append(name)


class Source(Protocol):
    """Where files come from; their names are relative to it."""

    def files(self, selection: Selection) -> Chosen:
        """The files that a selection takes."""

    def copy(self, name: str, size: int, destination: str, throttle: Throttle) -> None:
        """Copy one file; it takes its name only when it has that many bytes. Raises UserError when it cannot."""


def _known_size(url: str, size: int | None) -> int:
    return storage.size(url) if size is None else size


@dataclass(frozen=True)
class Folder:
    """A folder of any fsspec file system."""

    url: str

    def files(self, selection: Selection) -> Chosen:
        chosen = Chosen()
        for folder in storage.walk_data(self.url, lambda inner: _enters(selection, inner, self.url)):
            for url, size in sorted(folder.files.items()):
                name = url.removeprefix(self.url).strip("/")
                chosen.add(selection, name, partial(_known_size, url, size), url, self.url)
            chosen.passed_over.extend(url.removeprefix(self.url).strip("/") for url in folder.strange)
        chosen.passed_over.sort()
        return chosen

    def copy(self, name: str, size: int, destination: str, throttle: Throttle) -> None:
        url, position = storage.join(self.url, name), 0
        with storage.atomic_file(destination) as file:
            while position < size:
                stop = min(position + _RANGE, size)
                throttle.take(stop - position)
                content = storage.read_range(url, position, stop, throttle.pause)
                file.write(content)
                position += len(content)
            if position != size:
                raise UserError(
                    f"{shown(url)}: {position} bytes came, expected {size} as listed; it may have changed, run the command again"
                )
