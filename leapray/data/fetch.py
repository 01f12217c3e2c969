"""Resumable copy of chosen months of a source: netCDF pairs by month and absolute step, flat files by the month in their names.

A file is complete when it stands in the destination with the source's size, since it takes its name only then: the same command
again copies what is missing.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from leapray import storage
from leapray.climsim.calendar import file_name, month_range
from leapray.console import scaled
from leapray.data.flat import Selection
from leapray.data.kaggle import SCHEME, KaggleFiles
from leapray.data.origin import Chosen, Folder, Source, Throttle
from leapray.errors import UserError
from leapray.evaluation.tables import SUFFIXES
from leapray.faults import placed, shown


@dataclass(frozen=True)
class Fetched:
    """What a copy did: files and bytes copied, and those that were there already."""

    files: int
    bytes: int
    present_files: int
    present_bytes: int


def fetch(
    source: str,
    destination: str,
    selection: Selection,
    *,
    parallel: int = 4,
    throttle: Throttle | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    notice: Callable[[str], None] | None = None,
) -> Fetched:
    """Copy the chosen files of a source, those that are not yet complete, to the same relative names below a destination.

    ``progress`` is called with bytes done, bytes in all and both in words; ``notice`` with one sentence for files that are passed over:
    those without data, and flat ones whose names tell no month where months are asked for.

    Raises UserError when nothing is chosen or, with both ends
    given, a month has no files, for a source that cannot be read, and, before it starts, for a disk without room.
    """
    if parallel < 1:
        raise UserError(f"parallel {parallel}: expected at least 1 copy at a time")
    origin, destination = _source(source), storage.absolute(destination)
    if "://" not in source and f"{destination}/".startswith(f"{storage.absolute(source)}/"):
        raise UserError(f"{destination}: lies in the source {source}, where copies would be found as data twice; choose another place")
    storage.require_folder(destination)
    chosen = origin.files(selection)
    wanted = chosen.sizes
    _check_months(source, chosen, selection)
    if notice is not None and chosen.passed_over:
        notice(f"{shown(source)}: {storage.passed_over_in_words(chosen.passed_over)}")
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
                    progress(done, total, f"{scaled(done)} of {scaled(total)}")
        except BaseException:
            shared.stop()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return Fetched(len(missing), total, len(wanted) - len(missing), sum(wanted.values()) - total)


def _source(url: str) -> Source:
    return KaggleFiles(url) if url.startswith(SCHEME) else Folder(storage.absolute(url))


def _check_months(source: str, chosen: Chosen, selection: Selection) -> None:
    if not chosen.sizes:
        remark = f"; {storage.passed_over_in_words(chosen.passed_over)}" if chosen.passed_over else ""
        expected = f"names such as {file_name('mli', 0)}, or {' and '.join(SUFFIXES)} with YYYY-MM in their names or folders"
        raise UserError(f"{placed(source)}: no files{selection}; expected {expected}{remark}")
    if selection.start and selection.stop:
        empty = [str(month) for month in month_range(selection.start, selection.stop) if month not in chosen.months]
        if empty:
            raise UserError(f"{shown(source)}: no files for month {', '.join(empty)}, which {selection.start} to {selection.stop} asks for")


def _check_room(destination: str, needed: int) -> None:
    if not storage.is_local(destination):
        return
    place = Path(destination)
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if needed > free:
        raise UserError(
            f"{destination}: {scaled(needed)} to copy, {scaled(free)} free, so {scaled(needed - free)} too little; "
            "choose fewer months, a stride or another place"
        )
