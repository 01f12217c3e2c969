"""netCDF pairs to flat parquet, as one pass of Ray Data over groups of pairs.

A group is one file: the chosen steps of a fixed span of one month. Which steps share a file depends on month, absolute step and
stride alone, so months converted apart, or in a run that was interrupted, give the same files as one run. What a file was made from is
noted beside them once it is complete, so that files are a function of the data alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray.data

from leapray import storage
from leapray.climsim.calendar import Month, file_name, month_of_step, parse_file_name
from leapray.climsim.netcdf import read_pair, require_clocks
from leapray.climsim.pairs import PairPath, find_archive
from leapray.climsim.row_keys import KINDS
from leapray.climsim.schema import KAGGLE, VariableSet
from leapray.cluster import session
from leapray.data.flat import ROW_GROUP_ROWS, flat_schema, to_table
from leapray.data.flat.layout import CONTENT_KEY, SNAPSHOT_KEY
from leapray.data.flat.places import month_in_name
from leapray.errors import UserError
from leapray.faults import shown
from leapray.settings import claim

_SETTINGS_FILE = "_conversion.json"
_NOTES = "_conversion"
"""Folder of the notes, one for each file, of what it was made from."""
INCOMPLETE = f"{_NOTES}/incomplete.json"
"""Names of the source's files that were left out because their partner is missing; not there when none was."""
_STEPS_KEY, _VARIABLES_KEY = b"leapray.steps", b"leapray.variables"
_FILE_ROWS = 24 * KINDS["low-res"].columns
"""About 68 MB: one row group, and a few hundred milliseconds of work."""
_BLOCKS = 1000
"""Most blocks of groups that Ray Data is given; making each costs the driver about a millisecond."""


@dataclass(frozen=True)
class Conversion:
    """What a conversion left in its destination: all its files and rows, ``continued`` of the files from an earlier run.

    ``incomplete`` are the source's files that were left out because their partner is missing, in time order.
    """

    kind: str
    files: int
    rows: int
    continued: int
    incomplete: tuple[str, ...] = ()


@dataclass(frozen=True)
class Settings:
    """What all files of one destination share; ``columns`` are the rows of a snapshot."""

    kind: str
    columns: int
    stride: int
    phase: int
    variables: str
    """Name of the variable set."""
    digest: str
    """Of its columns."""


def convert(
    source: str,
    destination: str,
    *,
    stride: int = 1,
    phase: int = 0,
    start: Month | None = None,
    stop: Month | None = None,
    kind: str | None = None,
    skip_incomplete: bool = False,
    variables: VariableSet = KAGGLE,
    progress: Callable[[int, int], None] | None = None,
    notice: Callable[[str], None] | None = None,
) -> Conversion:
    """Convert the chosen pairs below ``source`` to ``<kind>.<YYYY-MM>.<nnnn>.parquet`` in ``destination``, with the raw inputs and
    targets of ``variables``.

    Pairs are chosen as in :func:`find_archive`. With ``skip_incomplete`` steps that lack one of their two files are left out, and
    :data:`INCOMPLETE` in the destination lists them. Files that an earlier run completed are kept, unless their pairs have changed
    since, by :attr:`storage.DataFiles.marks`: what was touched or copied is converted again too. ``progress`` is called with pairs done and
    in all. Raises UserError for what :func:`find_archive` and :func:`read_pair` refuse, for a file of another kind or number of columns
    than the first, for a file whose clock is of another step than its name, for a destination that was converted with other settings, and
    for one that holds files of steps whose pairs are gone, in a month of which others are there. Files of other months are kept, and
    ``notice`` is called with one sentence for those of months that were asked for and have no pairs.
    """
    source, destination = storage.absolute(source), storage.absolute(destination)
    pairs, incomplete = find_archive(source, start=start, stop=stop, stride=stride, phase=phase, skip=skip_incomplete, notice=notice)
    first = read_pair(pairs[0], kind, variables)
    require_clocks(pairs[0], first)
    settings = Settings(first.kind, len(first.rows), stride, phase, variables.name, variables.digest)
    claim(destination, _SETTINGS_FILE, asdict(settings), "a conversion", ".parquet")
    groups = group_pairs(pairs, destination, settings)
    there = storage.list_files(destination, ".parquet")
    left = {_group_url(_step(path), destination, settings) for path in incomplete} - {group["path"] for group in groups}
    _require_pairs(source, destination, settings, pairs, set(there) - left, start, stop, notice)
    _note_incomplete(destination, settings, incomplete, start, stop)
    # of steps that were complete in an earlier run
    for url in left.intersection(there):
        storage.remove(note_url(url))
        storage.remove(url)
    write = GroupWriter(settings, variables, kind_is_given=kind is not None)
    rows = done = continued = 0
    with session.connected():
        dataset = ray.data.from_items(groups, override_num_blocks=min(len(groups), _BLOCKS)).map(write)
        for result in dataset.iter_rows():
            rows += result["rows"]
            done += result["pairs"]
            continued += result["continued"]
            if progress is not None:
                progress(done, len(pairs))
    return Conversion(settings.kind, len(groups), rows, continued, tuple(incomplete))


def _note_incomplete(destination: str, settings: Settings, incomplete: Sequence[str], start: Month | None, stop: Month | None) -> None:
    """List what this run leaves out, and what earlier runs left out of other months."""
    url = storage.join(destination, INCOMPLETE)
    there = storage.exists(url)
    steps = {path.rpartition("/")[2]: _step(path) for path in incomplete}
    for name in storage.read_json(url) if there else []:
        step = _step(name)
        inside = (start is None or start.first_step <= step) and (stop is None or step < stop.first_step)
        if not inside and step % settings.stride == settings.phase:
            steps[name] = step
    if steps:
        storage.write_json(url, sorted(steps, key=lambda name: steps[name]))
    elif there:
        storage.remove(url)


def _step(path: str) -> int:
    parsed = parse_file_name(path)
    if parsed is None:
        raise UserError(f"{path}: expected the name of a ClimSim file in {INCOMPLETE}; remove that file")
    return parsed[1]


def _require_pairs(
    source: str,
    destination: str,
    settings: Settings,
    pairs: Sequence[PairPath],
    there: Iterable[str],
    start: Month | None,
    stop: Month | None,
    notice: Callable[[str], None] | None,
) -> None:
    """Raises UserError where files of an earlier run hold steps of a month in which the source now has other pairs alone.

    They are not removed here: the user may have converted them from another folder. Those of months without any pair may well be that,
    so they are only told.
    """
    groups = {_group_url(pair.step, destination, settings) for pair in pairs}
    filled = {month_of_step(pair.step) for pair in pairs}
    gone: dict[Month, list[str]] = {}
    for url in sorted(set(there) - groups):
        folder, _, name = url.rpartition("/")
        month = month_in_name(name)
        asked_for = month is not None and (start is None or start <= month) and (stop is None or month < stop)
        if folder == destination and month is not None and asked_for:
            gone.setdefault(month, []).append(name)
    if stale := [name for month in sorted(gone.keys() & filled) for name in gone[month]]:
        more = f" and {len(stale) - 1} more files" if len(stale) > 1 else ""
        raise UserError(
            f"{shown(destination)}: holds {stale[0]}{more} of steps that have no pairs in {shown(source)}; remove such files, or choose "
            "another destination"
        )
    if gone and notice is not None:
        count = sum(map(len, gone.values()))
        notice(
            f"{shown(destination)}: keeps {count} file{'' if count == 1 else 's'} of months without pairs in {shown(source)}, "
            f"{min(gone)} to {max(gone)}"
        )


def group_pairs(pairs: list[PairPath], destination: str, settings: Settings) -> list[dict[str, Any]]:
    """Pairs gathered by file, in time order, as the rows that Ray Data hands out."""
    files: dict[str, list[PairPath]] = {}
    for pair in pairs:
        files.setdefault(_group_url(pair.step, destination, settings), []).append(pair)
    return [{"path": path, "pairs": [asdict(pair) for pair in group]} for path, group in files.items()]


def _group_url(step: int, destination: str, settings: Settings) -> str:
    """The file that holds the rows of a step."""
    span = settings.stride * max(1, _FILE_ROWS // KINDS[settings.kind].columns)
    month = month_of_step(step)
    return storage.join(destination, f"{settings.kind}.{month}.{(step - month.first_step) // span:04d}.parquet")


@dataclass(frozen=True)
class GroupWriter:
    """The work of one Ray task: reads the pairs of a group and writes their file, unless it is already there."""

    settings: Settings
    variables: VariableSet
    kind_is_given: bool

    def __call__(self, group: dict[str, Any]) -> dict[str, int]:
        path, pairs = group["path"], [PairPath(**pair) for pair in group["pairs"]]
        steps = ",".join(str(pair.step) for pair in pairs).encode()
        note, made_from = note_url(path), {"pairs": _digest(pairs)}
        if storage.exists(note):
            rows = _rows_if_complete(path, steps) if storage.read_json(note) == made_from else None
            if rows is not None:
                return {"rows": rows, "pairs": len(pairs), "continued": 1}
            storage.remove(note)
        with flat_writer(path, steps, self.variables) as write:
            for pair in pairs:
                write(self._read(pair))
        storage.write_json(note, made_from)
        return {"rows": len(pairs) * self.settings.columns, "pairs": len(pairs), "continued": 0}

    def _read(self, pair: PairPath) -> pa.Table:
        snapshot = read_pair(pair, self.settings.kind if self.kind_is_given else None, self.variables)
        require_clocks(pair, snapshot)
        if snapshot.kind != self.settings.kind:
            raise UserError(f"{pair.mli}: is {snapshot.kind}, expected {self.settings.kind} as the first file is; convert each kind apart")
        if len(snapshot.rows) != self.settings.columns:
            raise UserError(f"{pair.mli}: {len(snapshot.rows)} columns, expected {self.settings.columns} as in the first file")
        return to_table(snapshot)


def note_url(path: str) -> str:
    """Where it is noted what a file was made from: there only while that file is complete."""
    folder, _, name = path.rpartition("/")
    return storage.join(folder, _NOTES, f"{name}.json")


def _digest(pairs: Sequence[PairPath]) -> str:
    """Of names and marks, wherever the pairs lie."""
    return hashlib.sha256("\n".join(f"{file_name('mli', pair.step)} {pair.mark}" for pair in pairs).encode()).hexdigest()


def _rows_if_complete(path: str, steps: bytes) -> int | None:
    """Rows of a file that already holds exactly these steps, else None; one that is damaged is written anew."""
    if not storage.exists(path):
        return None
    try:
        with storage.open_input(path) as file:
            metadata = pq.read_metadata(file)
    except (pa.ArrowException, OSError):
        return None
    return metadata.num_rows if (metadata.metadata or {}).get(_STEPS_KEY) == steps else None


@contextmanager
def flat_writer(path: str, steps: bytes, variables: VariableSet = KAGGLE) -> Iterator[Callable[[pa.Table], None]]:
    """A function that takes snapshots one after another, each as :func:`to_table` gives it, and writes them to a file as row groups of
    bounded, nearly equal size. The file has its name once the block ends.

    ``steps`` is noted in the file: by it a later run tells that it is the same. So is a digest of its values, by which those who only
    read footers tell that it is another.

    The doubles hardly ever repeat, so dictionaries and statistics only cost time; lz4 takes an eighth off and is as fast as none.
    """
    schema = flat_schema(variables)
    waiting: list[pa.Table] = []
    content = hashlib.sha256()

    def flush() -> None:
        if waiting:
            table = pa.concat_tables(waiting)
            waiting.clear()
            groups = -(-table.num_rows // ROW_GROUP_ROWS)
            writer.write_table(table, row_group_size=-(-table.num_rows // groups))

    def write(table: pa.Table) -> None:
        if sum(part.num_rows for part in waiting) + table.num_rows > ROW_GROUP_ROWS:
            flush()
        waiting.append(table)
        content.update(table.schema.metadata[SNAPSHOT_KEY])

    with (
        storage.atomic_file(path) as file,
        pq.ParquetWriter(
            file,
            schema.with_metadata({_STEPS_KEY: steps, _VARIABLES_KEY: json.dumps(variables.to_dict()).encode()}),
            compression="lz4",
            use_dictionary=["kind"],
            write_statistics=["step"],
        ) as writer,
    ):
        yield write
        flush()
        writer.add_key_value_metadata({CONTENT_KEY: content.hexdigest()})
