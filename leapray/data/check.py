"""A first look at a source: which pairs are complete, and the first pair or file against the schema, known ranges and identities."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from leapray import storage
from leapray.climsim.calendar import Month, file_name, is_file_name, month_of_step, parse_file_name
from leapray.climsim.netcdf import Clock, clock_differs, read_pair
from leapray.climsim.pairs import REMEDY, STREAMS, Archive, archive, incomplete_in_words
from leapray.climsim.row_keys import KINDS, row_place
from leapray.climsim.schema import KAGGLE
from leapray.data.findings import Finding, Sample, Verdict, judge
from leapray.data.flat import Block, Piece, read_piece, survey
from leapray.data.flat.places import COMPETITION_ID, month_of_path, named_as_competition
from leapray.errors import UserError
from leapray.evaluation.tables import SUFFIXES, columns, is_table

SAMPLE_ROWS = 16384
"""The most rows of a flat file that are looked at."""
_LISTED_AT_ONCE = 16


@dataclass(frozen=True)
class _Place:
    """The first folder below a source that holds data, what it holds, the folders beside it, which may be months, and the names of the
    files passed over so far."""

    source: str
    files: list[str]
    beside: Sequence[str]
    passed_over: list[str]

    @property
    def months(self) -> list[Month]:
        named = {month_of_path(name, self.source) for name in (*self.beside, *self.files)}
        return sorted(month for month in named if month is not None)

    def name(self, path: str) -> str:
        """A file as it is named below the source."""
        return path.removeprefix(self.source).strip("/") or path.rpartition("/")[2]


def check(source: str, kind: str | None = None) -> list[Finding]:
    """Look at the first complete netCDF pair below a source, or at the first rows of its first flat parquet or csv file.

    ``kind`` is what the rows are taken for where neither the files nor their columns say so. Folders are listed by the rule of
    :func:`storage.list_data`, in depth, up to the first that holds data; the folders beside it, which mostly are months, are listed too.
    What is wrong with the data comes back as findings; raises UserError for a source that holds none or an unknown kind.
    """
    if kind is not None and kind not in KINDS:
        raise UserError(f"kind {kind!r} is unknown, expected one of {', '.join(KINDS)}")
    place = _first_place(source)
    try:
        found = list(_pair(place, kind) if any(map(is_file_name, place.files)) else _flat(place, kind))
    except UserError as error:
        found = [Finding(Verdict.WRONG, str(error))]
    # filled while the folders were listed
    passed_over = [Finding(Verdict.NOTE, storage.passed_over_in_words(place.passed_over))] if place.passed_over else []
    return [*found, *passed_over]


def require_good(source: str, findings: Sequence[Finding]) -> None:
    """Raises UserError, with the first of them, if anything is wrong."""
    wrong = [finding.text for finding in findings if finding.verdict is Verdict.WRONG]
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise UserError(f"{source}: is wrong, {wrong[0]}{more}")


def _first_place(source: str) -> _Place:
    place = _Place(storage.absolute(source), [], (), [])
    for folder in storage.walk_data(place.source):
        pairs, tables = (sorted(filter(fits, folder.files)) for fits in (is_file_name, is_table))
        # those beside the first kind of files that is found are of no use to it
        data = pairs or tables
        place = replace(place, files=data, beside=folder.beside)
        others = [name for name in folder.files if name not in set(data)]
        place.passed_over.extend(map(place.name, sorted([*others, *folder.strange])))
        if data:
            return place
    remark = f"; {storage.passed_over_in_words(place.passed_over)}" if place.passed_over else ""
    raise UserError(f"{source}: neither ClimSim files such as {file_name('mli', 0)} nor {' or '.join(SUFFIXES)} files{remark}")


def _pair(place: _Place, kind: str | None) -> Iterator[Finding]:
    found = _archive(place)
    pairs, incomplete = found.pairs, found.incomplete
    if not pairs:
        raise UserError(f"no step has both files; {incomplete_in_words(incomplete)}")
    pair = pairs[0]
    snapshot = read_pair(pair, kind)
    inputs, targets = np.split(snapshot.rows, [KAGGLE.raw.width], axis=1)
    yield Finding(Verdict.OK, f"netCDF pairs of {snapshot.kind}, {len(snapshot.rows)} columns: {pair.mli} and its mlo were read")
    yield Finding(Verdict.OK, f"{len(pairs)} steps have both files; {_months(sorted({month_of_step(pair.step) for pair in pairs}))}")
    if incomplete:
        yield Finding(Verdict.NOTE, f"{incomplete_in_words(incomplete)}; {REMEDY}")
    yield _column_count(snapshot.kind, len(snapshot.rows))
    for stream, clock in zip(STREAMS, snapshot.clocks, strict=True):
        yield _clock(stream, clock, pair.step)
    yield from judge(Sample(snapshot.kind, inputs, targets))


def _archive(place: _Place) -> Archive:
    """The files in the folder of the first file and in those beside it; of a source that is one file, this file and its partner."""
    if place.source in place.files:
        (path,) = place.files
        folder = path.rpartition("/")[0]
        parsed = parse_file_name(path)
        names = {storage.join(folder, file_name(stream, parsed[1])) for stream in STREAMS} if parsed else set()
        return archive([name for name in names if name == path or storage.exists(name)])
    first = {name.rpartition("/")[0] for name in place.files}
    return archive(sorted([*place.files, *_beside(place, is_file_name, first)]))


def _beside(place: _Place, is_data: Callable[[str], bool], listed: Container[str]) -> list[str]:
    """The data files in the folders beside the first, which is ``listed``; what is passed over there is noted."""
    found: list[str] = []
    with ThreadPoolExecutor(_LISTED_AT_ONCE) as pool:
        for folder in pool.map(storage.list_data_folder, [name for name in place.beside if name not in listed]):
            data = sorted(filter(is_data, folder.files))
            found += data
            others = [name for name in folder.files if name not in set(data)]
            place.passed_over.extend(map(place.name, sorted([*others, *folder.strange])))
    return found


def _column_count(kind: str, count: int) -> Finding:
    expected = KINDS[kind].columns
    if count == expected:
        return Finding(Verdict.OK, f"{count} columns, as {kind} has")
    return Finding(Verdict.NOTE, f"{count} columns, where {kind} has {expected}")


def _clock(stream: str, clock: Clock | None, step: int) -> Finding:
    """The clock in a file against its name; in ClimSim's own low-res files both streams have the time of their name."""
    if clock is None:
        return Finding(Verdict.NOTE, f"the {stream} file has no ymd and tod; time is taken from its name")
    if (differs := clock_differs(clock, step)) is None:
        return Finding(Verdict.OK, f"ymd and tod of the {stream} file agree with its name")
    return Finding(Verdict.WRONG, f"the {stream} file {file_name(stream, step)} {differs}")


def _flat(place: _Place, kind: str | None) -> Iterator[Finding]:
    path = place.files[0]
    notices: list[str] = []
    with_targets = not set(KAGGLE.targets.columns).isdisjoint(columns(path))
    found = survey(path, targets=with_targets, within=place.source, notice=notices.append)
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
    files = len(place.files) + len(_beside(place, is_table, {path.rpartition("/")[0]}))
    where = "that folder and those beside it" if place.beside else "that folder"
    yield Finding(Verdict.OK, f"{files} files in {where}, the first{rows}; {_months(place.months or found.months)}")
    if with_targets:
        yield Finding(Verdict.OK, "every column of the flat layout is there, with numbers in it")
    else:
        yield Finding(Verdict.NOTE, "every input column is there, and no target: rows to predict, not to train on or to evaluate by")
    yield from (Finding(Verdict.NOTE, sentence) for sentence in notices)
    yield _unique(ids)
    yield _time(path, month_of_path(path, place.source), steps if known else None, ids)
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


def _time(path: str, named: Month | None, steps: np.ndarray | None, ids: pa.ChunkedArray) -> Finding:
    """Steps of the rows against the month in the file's path."""
    if steps is None:
        told = f"the month {named} of its name or folder" if named else "nothing of when they are"
        text = f"rows tell {told}, not their steps; a stride cannot be taken of them"
        if named is None and not named_as_competition(path) and len(ids) and ids[0].is_valid and COMPETITION_ID.fullmatch(ids[0].as_py()):
            text += "; their ids look like the competition's, and count as such only in its train.csv or in a folder of its name"
        return Finding(Verdict.NOTE, text)
    first, last = month_of_step(int(steps.min())), month_of_step(int(steps.max()))
    if named is None or first == named == last:
        return Finding(Verdict.OK, f"rows are of steps {steps.min()} to {steps.max()}, {first} to {last}")
    return Finding(Verdict.WRONG, f"{path}: rows are of {first} to {last}, expected {named} as in its name or folder")


def _months(months: list[Month]) -> str:
    return f"{len(months)} months, {months[0]} to {months[-1]}" if months else "months are not in the names"
