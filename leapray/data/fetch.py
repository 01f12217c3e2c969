"""Resumable copy of chosen months of a source: netCDF pairs by month and absolute step, flat files by the month in their names.

A file is complete when it stands in the destination with the source's size, since it takes its name only then: the same command
again copies what is missing.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from leapray import storage
from leapray.climsim.calendar import Month, file_name, month_of_step, month_range, parse_file_name
from leapray.data.flat.places import month_in_name
from leapray.errors import UserError
from leapray.evaluation.tables import SUFFIXES
from leapray.faults import shown

_RANGE = 16 * 2**20
"""Bytes asked for at once: what a thread holds, and what a failed request loses."""
_UNITS = ("B", "kB", "MB", "GB", "TB")


@dataclass(frozen=True)
class Fetched:
    """What a copy did: files and bytes copied, and those that were there already."""

    files: int
    bytes: int
    present_files: int
    present_bytes: int


@dataclass(frozen=True)
class Selection:
    """Months from ``start`` up to, not including, ``stop``, and of netCDF pairs the steps with ``step % stride == phase``."""

    start: Month | None = None
    stop: Month | None = None
    stride: int = 1
    phase: int = 0

    def __post_init__(self) -> None:
        if self.stride < 1 or not 0 <= self.phase < self.stride:
            raise UserError(
                f"stride {self.stride} with phase {self.phase}: expected a stride of at least 1 and a phase from 0 to stride - 1"
            )

    def has(self, month: Month) -> bool:
        return (self.start is None or self.start <= month) and (self.stop is None or month < self.stop)

    def takes(self, name: str) -> bool:
        """Whether a file is chosen; a flat file that names no month is, when no month is asked for."""
        parsed, month = parse_file_name(name), month_of_file(name)
        if parsed is None and not name.endswith(SUFFIXES):
            return False
        in_time = self.has(month) if month else self.start is None and self.stop is None
        return in_time and (parsed is None or parsed[1] % self.stride == self.phase)

    def enters(self, folder: str) -> bool:
        """Whether a folder may hold chosen files: not one that is named like a month outside of them."""
        name = folder.rsplit("/", 1)[-1]
        month = month_in_name(name)
        return month is None or name != str(month) or self.has(month)

    def __str__(self) -> str:
        months = f"months from {self.start or 'the first'} up to {self.stop or 'the last'}"
        return months if self.stride == 1 else f"{months} with step % {self.stride} == {self.phase}"


def month_of_file(name: str) -> Month | None:
    """The month of a file of a netCDF pair, or the one in a flat file's name."""
    parsed = parse_file_name(name)
    return month_of_step(parsed[1]) if parsed else month_in_name(name)


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
            if selection.takes(name):
                yield name, size
        for inner in sorted(folders):
            if selection.enters(inner):
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
                raise UserError(f"{url}: {position} bytes came, expected {size} as listed; it may have changed, run the command again")


def fetch(
    source: str,
    destination: str,
    selection: Selection,
    *,
    parallel: int = 4,
    throttle: Throttle | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Fetched:
    """Copy the chosen files of a source, those that are not yet complete, to the same relative names below a destination.

    ``progress`` is called with bytes done, bytes in all and both in words. Raises UserError when nothing is chosen or, with both ends
    given, a month has no files, for a source that cannot be read, and, before it starts, for a disk without room.
    """
    if parallel < 1:
        raise UserError(f"parallel {parallel}: expected at least 1 copy at a time")
    origin, destination = _source(source), storage.absolute(destination)
    wanted = origin.files(selection)
    _check_months(source, wanted, selection)
    found = storage.list_sizes(destination)
    missing = {name: size for name, size in wanted.items() if found.get(storage.join(destination, name)) != size}
    total = sum(missing.values())
    _check_room(destination, total)

    def copy(name: str) -> int:
        origin.copy(name, missing[name], storage.join(destination, name), shared)
        return missing[name]

    shared, done = throttle or Throttle(), 0
    with ThreadPoolExecutor(parallel) as pool:
        try:
            for copied in as_completed([pool.submit(copy, name) for name in missing]):
                done += copied.result()
                if progress is not None:
                    progress(done, total, f"{in_words(done)} of {in_words(total)}")
        except BaseException:
            shared.stop()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return Fetched(len(missing), total, len(wanted) - len(missing), sum(wanted.values()) - total)


def in_words(count: int) -> str:
    """Bytes in the decimal unit that suits them."""
    value, unit = float(count), 0
    while value >= 1000 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.1f} {_UNITS[unit]}" if unit else f"{count} B"


def _source(url: str) -> Source:
    if url.startswith("kaggle://"):
        from leapray.data.kaggle import KaggleFiles

        return KaggleFiles(url)
    return Folder(storage.absolute(url))


def _check_months(source: str, names: dict[str, int], selection: Selection) -> None:
    if not names:
        expected = f"names such as {file_name('mli', 0)}, or {' and '.join(SUFFIXES)} with YYYY-MM in their names"
        raise UserError(f"{shown(source)}: no files in the {selection}; expected {expected}")
    if selection.start and selection.stop:
        filled = {month_of_file(name) for name in names}
        empty = [str(month) for month in month_range(selection.start, selection.stop) if month not in filled]
        if empty:
            raise UserError(f"{shown(source)}: no files for month {', '.join(empty)}, which the {selection} ask for")


def _check_room(destination: str, needed: int) -> None:
    if not storage.is_local(destination):
        return
    place = Path(destination)
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if needed > free:
        raise UserError(
            f"{destination}: {in_words(needed)} to copy, {in_words(free)} free, so {in_words(needed - free)} too little; "
            "choose fewer months, a stride or another place"
        )
