"""A first look at a source: which pairs are complete, and the first pair or file against the schema, known ranges and identities."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from leapray import storage
from leapray.climsim.calendar import Moment, Month, file_name, month_of_step, parse_file_name
from leapray.climsim.netcdf import Clock, read_pair
from leapray.climsim.pairs import REMEDY, STREAMS, Archive, archive, incomplete_in_words
from leapray.climsim.schema import INPUTS, KINDS, TARGETS, row_place
from leapray.data.findings import Finding, Sample, Verdict, judge
from leapray.data.flat import Block, Piece, read_piece, survey
from leapray.data.flat.places import month_in_name
from leapray.errors import UserError
from leapray.evaluation.tables import SUFFIXES, columns

SAMPLE_ROWS = 16384
"""The most rows of a flat file that are looked at."""
_LISTED_AT_ONCE = 16


@dataclass(frozen=True)
class _Place:
    """The first folder below a source that holds data, what it holds, and the folders beside it, which may be months."""

    files: list[str]
    beside: list[str]

    @property
    def months(self) -> list[Month]:
        named = {month_in_name(name) for name in (*self.beside, *self.files)}
        return sorted(month for month in named if month is not None)


def check(source: str, kind: str | None = None) -> list[Finding]:
    """Look at the first complete netCDF pair below a source, or at the first rows of its first flat parquet or csv file.

    ``kind`` is what the rows are taken for where neither the files nor their columns say so. Folders are listed in depth, up to the
    first that holds data; of netCDF files, which mostly lie in a folder for each month, the folders beside it are listed too. What is
    wrong with the data comes back as findings; raises UserError for a source that holds none or an unknown kind.
    """
    if kind is not None and kind not in KINDS:
        raise UserError(f"kind {kind!r} is unknown, expected one of {', '.join(KINDS)}")
    place = _first_place(source)
    try:
        return list(_pair(source, place, kind) if any(map(parse_file_name, place.files)) else _flat(place, kind))
    except UserError as error:
        return [Finding(Verdict.WRONG, str(error))]


def require_good(source: str, findings: Sequence[Finding]) -> None:
    """Raises UserError, with the first of them, if anything is wrong."""
    wrong = [finding.text for finding in findings if finding.verdict is Verdict.WRONG]
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise UserError(f"{source}: is wrong, {wrong[0]}{more}")


def _first_place(source: str) -> _Place:
    waiting: list[tuple[str, list[str]]] = [(storage.absolute(source), [])]
    while waiting:
        folder, beside = waiting.pop()
        files, folders = storage.list_folder(folder)
        found = sorted(name for name in files if parse_file_name(name) or name.endswith(SUFFIXES))
        if found:
            return _Place(found, beside)
        inner = sorted(name for name in folders if not name.rpartition("/")[2].startswith((".", "_")))
        waiting += [(name, inner) for name in reversed(inner)]
    raise UserError(f"{source}: neither ClimSim files such as {file_name('mli', 0)} nor {' or '.join(SUFFIXES)} files")


def _pair(source: str, place: _Place, kind: str | None) -> Iterator[Finding]:
    found = _archive(source, place)
    pairs, incomplete = found.pairs, found.incomplete
    if not pairs:
        raise UserError(f"no step has both files; {incomplete_in_words(incomplete)}")
    pair = pairs[0]
    snapshot = read_pair(pair, kind)
    inputs, targets = np.split(snapshot.rows, [INPUTS.width], axis=1)
    yield Finding(Verdict.OK, f"netCDF pairs of {snapshot.kind}, {len(snapshot.rows)} columns: {pair.mli} and its mlo were read")
    yield Finding(Verdict.OK, f"{len(pairs)} steps have both files; {_months(sorted({month_of_step(pair.step) for pair in pairs}))}")
    if incomplete:
        yield Finding(Verdict.NOTE, f"{incomplete_in_words(incomplete)}; {REMEDY}")
    yield _column_count(snapshot.kind, len(snapshot.rows))
    for stream, clock in zip(STREAMS, snapshot.clocks, strict=True):
        yield _clock(stream, clock, pair.step)
    yield from judge(Sample(snapshot.kind, inputs, targets))


def _archive(source: str, place: _Place) -> Archive:
    """The files in the folder of the first file and in those beside it; of a source that is one file, this file and its partner."""
    if storage.absolute(source) in place.files:
        (path,) = place.files
        folder = path.rpartition("/")[0]
        parsed = parse_file_name(path)
        names = {storage.join(folder, file_name(stream, parsed[1])) for stream in STREAMS} if parsed else set()
        return archive([name for name in names if name == path or storage.exists(name)])
    folders = place.beside or [storage.absolute(source)]
    with ThreadPoolExecutor(_LISTED_AT_ONCE) as pool:
        return archive(sorted(name for files, _ in pool.map(storage.list_folder, folders) for name in files))


def _column_count(kind: str, count: int) -> Finding:
    expected = KINDS[kind].columns
    if count == expected:
        return Finding(Verdict.OK, f"{count} columns, as {kind} has")
    return Finding(Verdict.NOTE, f"{count} columns, where {kind} has {expected}")


def _clock(stream: str, clock: Clock | None, step: int) -> Finding:
    """The clock in a file against its name. That of real output files was never seen, and may be that of the end of the step."""
    if clock is None:
        return Finding(Verdict.NOTE, f"the {stream} file has no ymd and tod; time is taken from its name")
    near = {(at.ymd, at.second): offset for offset in (0, 1, -1) for at in [Moment.of_step(step + offset)]}.get(clock)
    if near == 0:
        return Finding(Verdict.OK, f"ymd and tod of the {stream} file agree with its name")
    verdict = Verdict.NOTE if stream == "mlo" and near is not None else Verdict.WRONG
    expected = Moment.of_step(step)
    told = f"ymd {clock[0]} and tod {clock[1]}, expected {expected.ymd} and {expected.second} as in its name"
    return Finding(verdict, f"the {stream} file {file_name(stream, step)} has {told}")


def _flat(place: _Place, kind: str | None) -> Iterator[Finding]:
    path = place.files[0]
    notices: list[str] = []
    with_targets = not set(TARGETS.columns).isdisjoint(columns(path))
    found = survey(path, targets=with_targets, notice=notices.append)
    blocks = _sample(found.pieces()[0], kind, with_targets)
    inputs, targets, row = (np.concatenate([getattr(block, name) for block in blocks]) for name in ("inputs", "targets", "row"))
    ids = pa.chunked_array([block.sample_id for block in blocks])
    known = (row >= 0).all()
    codes, steps, _ = row_place(row)
    kind = kind or (next(name for name, known_kind in KINDS.items() if known_kind.code == codes[0]) if known else None)
    yield Finding(
        Verdict.OK, f"flat {path.rpartition('.')[2]} of {kind or 'a kind that it does not tell'}: {len(row)} rows of {path} were read"
    )
    rows = "" if found.rows is None else f" of {found.rows} rows"
    yield Finding(Verdict.OK, f"{len(place.files)} files in that folder, the first{rows}; {_months(place.months or found.months)}")
    if with_targets:
        yield Finding(Verdict.OK, "every column of the flat layout is there, with numbers in it")
    else:
        yield Finding(Verdict.NOTE, "every input column is there, and no target: rows to predict, not to train on or to evaluate by")
    yield from (Finding(Verdict.NOTE, sentence) for sentence in notices)
    yield _unique(ids)
    yield _time(path, steps if known else None)
    if kind is None:
        yield Finding(Verdict.NOTE, "the kind is not told, so that ranges are those of low-res; give --kind")
    yield from judge(Sample(kind or next(iter(KINDS)), inputs, targets))


def _sample(piece: Piece, kind: str | None, targets: bool) -> list[Block]:
    """The first rows of a piece, at least one."""
    blocks: list[Block] = []
    for block in read_piece(piece, targets=targets, kind=kind, limit=SAMPLE_ROWS):
        blocks.append(block)
        if sum(len(block.row) for block in blocks) >= SAMPLE_ROWS:
            break
    if not blocks:
        raise UserError(f"{piece.path}: no rows")
    return blocks


def _unique(ids: pa.ChunkedArray) -> Finding:
    counts = ids.value_counts()
    twice = counts.filter(pc.greater(counts.field("counts"), 1))
    if not len(twice):
        return Finding(Verdict.OK, "sample ids are unique in these rows")
    return Finding(Verdict.WRONG, f"{len(twice)} sample ids stand more than once, such as {twice[0].as_py()['values']}")


def _time(path: str, steps: np.ndarray | None) -> Finding:
    """Steps of the rows against the month in the file's name."""
    named = month_in_name(path)
    if steps is None:
        told = f"the month {named} of its name" if named else "nothing of when they are"
        return Finding(Verdict.NOTE, f"rows tell {told}, not their steps; a stride cannot be taken of them")
    first, last = month_of_step(int(steps.min())), month_of_step(int(steps.max()))
    if named is None or first == named == last:
        return Finding(Verdict.OK, f"rows are of steps {steps.min()} to {steps.max()}, {first} to {last}")
    return Finding(Verdict.WRONG, f"{path}: rows are of {first} to {last}, expected {named} as in its name")


def _months(months: list[Month]) -> str:
    return f"{len(months)} months, {months[0]} to {months[-1]}" if months else "months are not in the names"
