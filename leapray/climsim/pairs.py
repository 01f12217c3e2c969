"""Finds ClimSim's netCDF pairs below a folder: the steps that have both files, and the files whose partner is missing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from leapray import storage
from leapray.climsim.calendar import Month, check_stride, file_name, is_file_name, month_of_step, month_range, parse_file_name
from leapray.climsim.schema import STEP_SECONDS
from leapray.errors import UserError
from leapray.faults import placed

STREAMS = ("mli", "mlo")
REMEDY = "`leapray convert --incomplete skip` leaves such steps out"
_NAMED = 3


@dataclass(frozen=True)
class PairPath:
    """The input and output file of one absolute model step; ``mark`` is another when the content of one of them is."""

    step: int
    mli: str
    mlo: str
    mark: str = field(default="", compare=False)


@dataclass(frozen=True)
class Archive:
    """The files of an archive by absolute step, each stream apart."""

    mli: Mapping[int, str]
    mlo: Mapping[int, str]

    @property
    def pairs(self) -> list[PairPath]:
        """Steps with both files, in time order."""
        return [PairPath(step, self.mli[step], self.mlo[step]) for step in sorted(self.mli.keys() & self.mlo.keys())]

    @property
    def incomplete(self) -> list[str]:
        """Files whose partner is missing, in time order."""
        return [self.mli.get(step) or self.mlo[step] for step in sorted(self.mli.keys() ^ self.mlo.keys())]


def archive(paths: Iterable[str], chosen: Callable[[int], bool] = lambda step: True) -> Archive:
    """The ClimSim files among paths, of the steps that are ``chosen``.

    Raises UserError for a file whose name tells no step, and for a step that stands twice in one stream.
    """
    streams: dict[str, dict[int, str]] = {stream: {} for stream in STREAMS}
    for path in paths:
        parsed = parse_file_name(path)
        if parsed is None and is_file_name(path):
            raise UserError(f"{path}: its name tells no step, expected a day of the 365-day year and a multiple of {STEP_SECONDS} s")
        if parsed is None or not chosen(parsed[1]):
            continue
        stream, step = parsed
        if step in streams[stream]:
            raise UserError(f"{path}: the same step is also in {streams[stream][step]}, expected one file for each step")
        streams[stream][step] = path
    return Archive(**streams)


def incomplete_in_words(files: Sequence[str]) -> str:
    """Files whose partner is missing, in a few words: how many, the first names, and what each lacks."""
    names = [f"{path.rpartition('/')[2]} (no {_partner(path)[0]})" for path in files[:_NAMED]]
    more = f" and {len(files) - _NAMED} more" if len(files) > _NAMED else ""
    return f"{len(files)} step{' lacks' if len(files) == 1 else 's lack'} one of the two files: {', '.join(names)}{more}"


def _partner(path: str) -> tuple[str, str]:
    """The stream and the name of the file that belongs to a file."""
    parsed = parse_file_name(path)
    assert parsed is not None
    stream = next(other for other in STREAMS if other != parsed[0])
    return stream, file_name(stream, parsed[1])


def find_pairs(source: str, *, start: Month | None = None, stop: Month | None = None, stride: int = 1, phase: int = 0) -> list[PairPath]:
    """The pairs of :func:`find_archive`. Raises UserError as it does, and for a chosen file whose partner is missing."""
    return find_archive(source, start=start, stop=stop, stride=stride, phase=phase, skip=False)[0]


def find_archive(
    source: str,
    *,
    start: Month | None = None,
    stop: Month | None = None,
    stride: int = 1,
    phase: int = 0,
    skip: bool,
    notice: Callable[[str], None] | None = None,
) -> tuple[list[PairPath], list[str]]:
    """Pairs below a local or remote folder, in time order, and the files whose partner is missing, both of the chosen steps.

    Files are found by :func:`storage.list_data`, and ``notice`` is called with one sentence when others are passed over. Chosen are
    steps with ``step % stride == phase`` in the months from ``start`` up to, not including, ``stop``. Raises UserError when there is no
    ClimSim file or no pair is chosen, when a step stands twice, with both ends given for a month without pairs, and, unless ``skip``
    leaves them out, for a file whose partner is missing.
    """
    check_stride(stride, phase)
    first, last = (month.first_step if month else bound for month, bound in ((start, -math.inf), (stop, math.inf)))
    listed = storage.list_data(source, is_file_name)
    marks = listed.marks
    found = archive(marks, lambda step: first <= step < last and step % stride == phase)
    pairs, incomplete = found.pairs, found.incomplete
    if notice is not None and listed.notice and marks:
        notice(listed.notice)
    if incomplete and not skip:
        count = f" (and {len(incomplete) - 1} more like it)" if len(incomplete) > 1 else ""
        raise UserError(
            f"{incomplete[0]}: its {_partner(incomplete[0])[1]} is missing{count}, expected both files of every step; fetch it, or {REMEDY}"
        )
    if not pairs and incomplete:
        raise UserError(f"{source}: no step has both files; {incomplete_in_words(incomplete)}")
    if not marks:
        expected = f"expected names such as {file_name('mli', 0)} and {file_name('mlo', 0)}"
        raise UserError(f"{placed(source)}: no ClimSim files, {expected}{listed.remark}")
    if not pairs:
        raise UserError(f"{source}: no files in the months and with the stride and phase asked for")
    if start and stop:
        filled = {month_of_step(pair.step) for pair in pairs}
        empty = [str(month) for month in month_range(start, stop) if month not in filled]
        if empty:
            raise UserError(
                f"{source}: no pairs with step % {stride} == {phase} in month {', '.join(empty)}, which {start} to {stop} asks for"
            )
    return [PairPath(pair.step, pair.mli, pair.mlo, f"{marks[pair.mli]}, {marks[pair.mlo]}") for pair in pairs], incomplete
