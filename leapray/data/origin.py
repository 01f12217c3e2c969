"""Where files are fetched from: what is chosen of a source, how it is copied, and at what rate."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from leapray import storage
from leapray.climsim.calendar import Month, month_of_step, parse_file_name
from leapray.data.flat import Selection
from leapray.data.flat.places import month_in_name
from leapray.errors import UserError
from leapray.evaluation.tables import SUFFIXES
from leapray.faults import shown

_RANGE = 16 * 2**20
"""Bytes asked for at once: what a thread holds, and what a failed request loses."""


def takes(selection: Selection, name: str) -> bool:
    """Whether a file is chosen: one of a netCDF pair by its step, a flat file by the month in its name, or if no month is asked for."""
    if parsed := parse_file_name(name):
        return bool(selection.takes_steps(np.array([parsed[1]]))[0])
    month = month_in_name(name)
    return name.endswith(SUFFIXES) and (_in_time(selection, month) if month else not selection.by_month)


def month_of_file(name: str) -> Month | None:
    """The month of a file of a netCDF pair, or the one in a flat file's name."""
    parsed = parse_file_name(name)
    return month_of_step(parsed[1]) if parsed else month_in_name(name)


def _enters(selection: Selection, folder: str) -> bool:
    """Whether a folder may hold chosen files: not one that is named like a month outside of them."""
    name = folder.rsplit("/", 1)[-1]
    month = month_in_name(name)
    return month is None or name != str(month) or _in_time(selection, month)


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


class Source(Protocol):
    """Where files come from; their names are relative to it."""

    def files(self, selection: Selection) -> dict[str, int]:
        """Bytes of each chosen file."""

    def copy(self, name: str, size: int, destination: str, throttle: Throttle) -> None:
        """Copy one file; it takes its name only when it has that many bytes. Raises UserError when it cannot."""


@dataclass(frozen=True)
class Folder:
    """A folder of any fsspec file system."""

    url: str

    def files(self, selection: Selection) -> dict[str, int]:
        return {
            name: storage.size(storage.join(self.url, name)) if size is None else size for name, size in self._walk(self.url, selection)
        }

    def _walk(self, folder: str, selection: Selection) -> Iterator[tuple[str, int | None]]:
        files, folders = storage.list_folder(folder)
        for url, size in sorted(files.items()):
            name = url.removeprefix(self.url).strip("/")
            if takes(selection, name):
                yield name, size
        for inner in sorted(folders):
            if _enters(selection, inner):
                yield from self._walk(inner, selection)

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
