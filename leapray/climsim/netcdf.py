"""Reads one of ClimSim's netCDF pairs into rows of the flat layout.

Shapes: n columns of the grid (``ncol``), 60 levels (``lev``).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Lock, Thread

import netCDF4
import numpy as np

from leapray import storage
from leapray.climsim import schema
from leapray.climsim.calendar import Moment, file_name
from leapray.climsim.grid import Grid
from leapray.climsim.pairs import PairPath
from leapray.climsim.row_keys import KINDS
from leapray.climsim.schema import KAGGLE, MLO_VARIABLES, STATE, STEP_SECONDS, Variable, VariableSet
from leapray.errors import UserError

_LAND_AND_ICE = ("cam_in_LANDFRAC", "cam_in_ICEFRAC", schema.SNOWHLAND.name)


Clock = tuple[int, int]
"""Date as YYYYMMDD without leading zeros, and second of the day."""

Content = tuple[dict[str, np.ndarray], int | None, Clock | None]
"""Arrays ``(60, n)`` or ``(n,)`` by name, the attribute ``ne``, and the clock."""

_MOST_COLUMNS = max(kind.columns for kind in KINDS.values())
"""Of the finest grid: a compressed file of a few kB may say that it has any number."""
_HDF5_SECONDS = 60.0
"""Longest that HDF5 content in memory may take to be read; the largest file of ClimSim takes about a second."""


@dataclass(frozen=True)
class Snapshot:
    """All columns of one kind at one absolute step.

    ``rows`` is ``(n, i + t)`` float64, raw inputs then targets, row r being ``ncol`` r. It lies in memory column by
    column, as netCDF and parquet hold it, so that a flat column is a contiguous vector. ``clocks`` are ``ymd`` and ``tod`` as the input
    and the output file have them, if they do; time is taken from the names, as official code takes it, and compared with these
    (:func:`require_clocks`).
    """

    kind: str
    step: int
    rows: np.ndarray
    clocks: tuple[Clock | None, Clock | None] = (None, None)
    variables: VariableSet = KAGGLE


def read_pair(pair: PairPath, kind: str | None = None, variables: VariableSet = KAGGLE) -> Snapshot:
    """Rows of one pair, raw inputs and targets of ``variables``, bit for bit as the files hold them.

    Tendencies are (after - before) / 1200 s in float64.

    Without ``kind`` it is read off the files: ``ne`` (or, without it, the number of columns) tells the resolution, and the absence of
    land, sea ice and snow the aqua-planet. Raises UserError for a truncated or foreign file, a missing variable, other
    dimensions or dtypes, and numbers of columns that differ within the pair. Values are not judged here.
    """
    before, ne, mli_clock = _read_variables(pair.mli, _needed(variables))
    after, _, mlo_clock = _read_variables(pair.mlo, MLO_VARIABLES)
    columns = len(before["state_ps"])
    if columns != after[STATE[0].name].shape[-1]:
        raise UserError(f"{pair.mlo}: {after[STATE[0].name].shape[-1]} columns, expected {columns} as in its {file_name('mli', pair.step)}")
    if kind is None:
        kind = _infer_kind(pair.mli, ne, before)
    elif kind not in KINDS:
        raise UserError(f"kind {kind!r} is unknown, expected one of {', '.join(KINDS)}")
    elif ne is not None and ne != KINDS[kind].ne:
        raise UserError(f"{pair.mli}: its grid is ne{ne}, expected ne{KINDS[kind].ne}, which is {kind}'s")
    elif kind == "aqua-planet" and not _is_aqua(before):
        raise UserError(f"{pair.mli}: has land, sea ice or snow, which an aqua-planet has not; expected another kind")

    raw = variables.raw
    values = np.empty((raw.width + variables.targets.width, columns))
    inputs, targets = values[: raw.width], values[raw.width :]
    for name in raw.names:
        inputs[raw[name]] = before[name]
    for name in variables.targets.names:
        into = targets[variables.targets[name]]
        if name.startswith("ptend_"):
            state = name.replace("ptend", "state")
            with np.errstate(all="ignore"):
                np.subtract(after[state], before[state], out=into)
            into /= STEP_SECONDS
        else:
            into[:] = after[name]
    return Snapshot(kind, pair.step, values.T, (mli_clock, mlo_clock), variables)


def _needed(variables: VariableSet) -> list[Variable]:
    """What is read of an input file: the raw variables, the states that change, and what tells the kind."""
    states = [name.replace("ptend", "state") for name in variables.targets.names if name.startswith("ptend_")]
    names = dict.fromkeys([*variables.raw.names, *states, *_LAND_AND_ICE])
    return [schema.VARIABLES[name] for name in names]


def clock_differs(clock: Clock | None, step: int) -> str | None:
    """In what a file's clock differs from the step that its name tells; None if it does not, or if the file has no clock."""
    expected = Moment.of_step(step)
    if clock is None or clock == (expected.ymd, expected.second):
        return None
    return f"has ymd {clock[0]} and tod {clock[1]}, expected {expected.ymd} and {expected.second} as in its name"


def require_clocks(pair: PairPath, snapshot: Snapshot) -> None:
    """Raises UserError, with the name of the file, where the clock of one of the two files is of another step than its name."""
    for path, clock in zip((pair.mli, pair.mlo), snapshot.clocks, strict=True):
        if differs := clock_differs(clock, pair.step):
            raise UserError(f"{path}: {differs}; its values are of another step, so fetch the file again or give it its own name")


def _read_variables(path: str, variables: Iterable[Variable]) -> Content:
    content = storage.read_bytes(path)
    if content.startswith(b"CDF"):
        return _decode(path, content, variables)
    return _reader(os.getpid()).result(path, lambda: _decode(path, content, variables))


class _Reader(Thread):
    """The one thread in which a process reads HDF5 files, whose library loops for ever on some damaged heaps and is not thread-safe.

    Such a loop cannot be ended: it keeps a core until the process ends, which is soon, as the UserError ends the run, and until then
    nothing else may use the library. One thread serves all files: a new one for each would start with no memory at hand and cost 5 to 10 %.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._requests: SimpleQueue[tuple[Future[Content], Callable[[], Content]]] = SimpleQueue()
        self._endless = ""
        self.start()

    def run(self) -> None:
        while True:
            _fulfil(*self._requests.get())

    def result(self, path: str, read: Callable[[], Content]) -> Content:
        """What ``read`` gives. Raises UserError when it takes longer than ``_HDF5_SECONDS``, and from then on for every HDF5 file."""
        if not self._endless:
            outcome: Future[Content] = Future()
            self._requests.put((outcome, read))
            try:
                return outcome.result(_HDF5_SECONDS)
            except TimeoutError:
                self._endless = path
            finally:
                if not outcome.done():
                    _skip_exit_handlers()
        raise UserError(f"{self._endless}: could not be opened within {_HDF5_SECONDS:g} s; it is damaged")


_READERS: dict[int, _Reader] = {}
_ONE_AT_A_TIME = Lock()


def _reader(process: int) -> _Reader:
    """The reader of this process: a fork inherits its parent's, but not the thread."""
    with _ONE_AT_A_TIME:
        return _READERS.get(process) or _READERS.setdefault(process, _Reader())


def _fulfil(outcome: Future[Content], read: Callable[[], Content]) -> None:
    try:
        outcome.set_result(read())
    except BaseException as error:
        outcome.set_exception(error)


def _skip_exit_handlers() -> None:
    """Let the process end at once, with its status, when Python is done: HDF5's handler would free what the thread still reads."""
    libc = ctypes.CDLL(None)
    # glibc's; elsewhere the process may end by a signal, after its last word
    if hasattr(libc, "on_exit"):
        libc.on_exit(libc._exit, None)


def _decode(path: str, content: bytes, variables: Iterable[Variable]) -> Content:
    try:
        # the name is of no file: libnetcdf would take a URL there for one that it should open itself
        with netCDF4.Dataset("memory", memory=content) as dataset:
            dataset.set_auto_maskandscale(False)
            columns = dataset.dimensions["ncol"].size if "ncol" in dataset.dimensions else 0
            if columns > _MOST_COLUMNS:
                raise UserError(f"{path}: says that it has {columns} columns, expected {_MOST_COLUMNS} at the most")
            values = {variable.name: _read_variable(path, dataset, variable, columns) for variable in variables}
            for name in dataset.variables.keys() - values.keys():
                _touch_end(dataset.variables[name])
            ne = int(dataset.ne) if "ne" in dataset.ncattrs() else None
            clock = _clock(dataset)
    except (OSError, RuntimeError, ValueError, LookupError, AttributeError, TypeError, MemoryError) as error:
        raise UserError(f"{path}: not a netCDF file or a truncated one ({len(content)} bytes)") from error
    return values, ne, clock


def _clock(dataset: netCDF4.Dataset) -> Clock | None:
    if not all(name in dataset.variables and not dataset.variables[name].shape for name in ("ymd", "tod")):
        return None
    return int(dataset.variables["ymd"][...]), int(dataset.variables["tod"][...])


def _read_variable(path: str, dataset: netCDF4.Dataset, variable: Variable, columns: int) -> np.ndarray:
    if variable.name not in dataset.variables:
        raise UserError(f"{path}: variable {variable.name} is missing")
    stored = dataset.variables[variable.name]
    dimensions, shape = (("ncol",), (columns,)) if variable.levels == 1 else (("lev", "ncol"), (variable.levels, columns))
    if stored.dimensions != dimensions or stored.shape != shape or not columns:
        found = ", ".join(f"{name}={size}" for name, size in zip(stored.dimensions, stored.shape, strict=True))
        expected = "ncol" if variable.levels == 1 else f"lev={variable.levels}, ncol"
        raise UserError(f"{path}: variable {variable.name} has dimensions ({found}), expected ({expected})")
    if np.dtype(stored.dtype).newbyteorder("=") != np.float64:
        raise UserError(f"{path}: variable {variable.name} has type {stored.dtype}, expected float64")
    return np.asarray(stored[...])


def _touch_end(stored: netCDF4.Variable) -> None:
    """Read the last value of an unused variable: in a classic file nothing else shows that its end is cut off."""
    if all(stored.shape):
        stored[(-1,) * stored.ndim]


def _infer_kind(path: str, ne: int | None, inputs: dict[str, np.ndarray]) -> str:
    columns = len(inputs["state_ps"])
    fitting = [kind.name for kind in KINDS.values() if (kind.ne == ne if ne is not None else kind.columns == columns)]
    if not fitting:
        told = f"ne = {ne}" if ne is not None else f"{columns} columns and no attribute ne"
        raise UserError(f"{path}: cannot tell the kind from {told}, expected it to be given as one of {', '.join(KINDS)}")
    if len(fitting) == 1:
        return fitting[0]
    return "aqua-planet" if _is_aqua(inputs) else "low-res"


def _is_aqua(inputs: dict[str, np.ndarray]) -> bool:
    return not any(inputs[name].any() for name in _LAND_AND_ICE)


def read_grid(url: str) -> Grid:
    """Latitude and longitude in degrees and area of every column. Raises UserError for a file that is no netCDF or lacks one of them."""
    content = storage.read_bytes(url)
    try:
        with netCDF4.Dataset("grid", memory=content) as file:
            missing = [name for name in ("lat", "lon", "area") if name not in file.variables]
            if missing:
                raise UserError(f"{url}: variable {', '.join(missing)} is missing, expected lat, lon and area of every column")
            lat, lon, area = (np.asarray(file[name][:], np.float64).ravel() for name in ("lat", "lon", "area"))
    except OSError as error:
        raise UserError(f"{url}: cannot be read as netCDF ({error})") from error
    if not len(lat) == len(lon) == len(area) or not (np.abs(lat) <= 90).all() or not (area > 0).all():
        raise UserError(f"{url}: expected lat from -90 to 90, lon and area above 0, one of each for every column")
    return Grid(lat, lon, area)
