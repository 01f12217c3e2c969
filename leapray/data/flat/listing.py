"""What a folder of flat parquet and csv holds, told once from its footers and headers, and the pieces of it that a split reads.

Ours and other people's files: the competition's csv, pandas-written parquet with giant row groups.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat

import numpy as np
import pyarrow as pa

from leapray import storage
from leapray.climsim.calendar import Month, month_of_step, month_range, parse_file_name
from leapray.climsim.schema import KAGGLE, VariableSet
from leapray.data.flat.headers import Header, Part, first_id, read_header
from leapray.data.flat.layout import check_columns, narrow_columns
from leapray.data.flat.places import COMPETITION_ROWS, PLACE, competition_rows, months_unknown, named_as_competition, steps_unknown
from leapray.data.flat.selection import Selection, Share
from leapray.errors import UserError
from leapray.evaluation.tables import SUFFIXES, is_table
from leapray.faults import placed, shown, told

_HEADERS_AT_ONCE = 16

Notice = Callable[[str], None]
"""Called with one sentence about what is passed over in the input."""


@dataclass(frozen=True)
class Piece:
    """A unit of work: one row group of a parquet file, or the rows of a csv that begin in the bytes of ``span``.

    ``rows`` are those of the row group, or -1 for a csv; ``index`` is its number in the whole listing, whatever was selected, ``file``
    that of its file in its month, and ``part`` its own in the file. Without a ``selection`` all of its rows belong; with one, ``rows`` is
    the most that reading gives. ``month`` is that of all its rows, where not a column but the file's path or the selection tells it.
    ``competition`` says that its file is the competition's, whose ids tell steps.
    """

    path: str
    row_group: int | None
    rows: int
    index: int
    file: int = 0
    part: int = 0
    span: tuple[int, int] | None = None
    month: Month | None = None
    selection: Selection | None = None
    rows_about: int = 0
    """Rows before selection; of a csv as many as its first rows let expect."""
    competition: bool = False

    @property
    def exact(self) -> bool:
        """Whether reading gives just ``rows`` rows."""
        return self.rows >= 0 and self.selection is None


class Survey:
    """A listing: every file that was found, checked, and its parts under one numbering."""

    def __init__(self, source: str, headers: Sequence[Header], sizes: Mapping[str, int]) -> None:
        self.source = source
        self._headers = headers
        self._sizes = sizes
        self._first_index = np.cumsum([0, *(len(header.parts) for header in headers)]).tolist()
        self._ids_tell: dict[str, bool] = {}
        self._all_of_competition = self.rows == COMPETITION_ROWS

    @property
    def paths(self) -> list[str]:
        return [header.path for header in self._headers]

    def fingerprint(self, pieces: Iterable[Piece] | None = None) -> str:
        """Changes when a file that holds one of the pieces does, or any file without them: a digest of names below the source, sizes
        and footers, so that a copied or moved folder is the same. Of files whose rows are known by the number of their file, that too, and
        of files without steps their month."""
        numbers = None if pieces is None else {piece.path: piece.file for piece in pieces}
        marks = []
        for header in self._headers:
            if numbers is None or header.path in numbers:
                mark = f"{header.path.removeprefix(storage.absolute(self.source))} {self._sizes[header.path]} {header.digest}"
                if numbers is not None and not PLACE.keys() <= set(header.schema.names):
                    mark += f" {numbers[header.path]}"
                # a folder above may tell them
                if "step" not in header.schema.names:
                    mark += f" {header.month} {self.of_competition(header)}"
                marks.append(mark)
        return hashlib.sha256("\n".join(marks).encode()).hexdigest()[:16]

    @property
    def rows(self) -> int | None:
        """Rows of all files, or None where a csv is among them."""
        counts = [part.rows for header in self._headers for part in header.parts]
        return None if -1 in counts else sum(counts)

    def of_competition(self, header: Header) -> bool:
        """Whether a file is the competition's, by its name or because the source has as many rows as the competition."""
        return named_as_competition(header.path) or self._all_of_competition

    @property
    def months(self) -> list[Month]:
        """Months that names and footers tell, in order; of a row group only its first and last."""
        named = {header.month for header in self._headers if header.month is not None}
        known = {step for header in self._headers for part in header.parts for step in part.steps or ()}
        return sorted(named.union(map(month_of_step, known)))

    def pieces(self, selection: Selection | None = None) -> list[Piece]:
        """The pieces that may hold rows of a selection, in order of path; all of them without one.

        The column ``step`` tells the month of a row; without one, all rows of a file have the month that its path
        tells (:func:`places.month_of_path`), or else ``selection.month``, or else those of the competition's files have the steps of their
        ids. Raises UserError where months or
        steps are asked for and cannot be told, and where there are no rows, at all or in one of the months.
        """
        selection = selection or Selection()
        found: list[Piece] = []
        months: list[tuple[Month, Month] | None] = []
        of_month: Counter[Month | None] = Counter()
        for header, first in zip(self._headers, self._first_index, strict=False):
            month = header.month or (None if "step" in header.schema.names else selection.month)
            if header.parts:
                self._check_time(header, month, selection)
            for number, part in enumerate(header.parts):
                if _overlaps(part, month, selection):
                    months.append(_months(part, month))
                    share = _share(part, month, selection)
                    if share is not Share.NONE:
                        chosen = selection if share is Share.SOME else None
                        found.append(
                            Piece(
                                path=header.path,
                                row_group=part.row_group,
                                rows=part.rows,
                                index=first + number,
                                file=of_month[month],
                                part=number,
                                span=part.span,
                                month=month,
                                selection=chosen,
                                rows_about=part.rows_about,
                                competition=self.of_competition(header),
                            )
                        )
            of_month[month] += 1
        self._check_months(selection, months)
        if not found:
            raise UserError(f"{self.source}: no rows{selection}")
        return found

    def _check_time(self, header: Header, month: Month | None, selection: Selection) -> None:
        """Raises UserError where a selection asks for what a file does not tell."""
        if "step" in header.schema.names:
            return
        if month is not None:
            if selection.stride > 1:
                raise steps_unknown(header.path)
        elif selection.needs_steps and not self._ids_are_steps(header):
            raise months_unknown(header.path)

    def _ids_are_steps(self, header: Header) -> bool:
        """Whether a file is the competition's, and its first id one that tells a step."""
        if not self.of_competition(header):
            return False
        if header.path not in self._ids_tell:
            head = first_id(header)
            self._ids_tell[header.path] = head is not None and competition_rows(head) is not None
        return self._ids_tell[header.path]

    def _check_months(self, selection: Selection, months: Sequence[tuple[Month, Month] | None]) -> None:
        """Raises UserError where it is known of a month between start and stop that nothing lies in it."""
        known = [span for span in months if span is not None]
        if not known or len(known) < len(months) or selection.start is None or selection.stop is None:
            return
        wanted = month_range(selection.start, selection.stop)
        empty = [str(month) for month in wanted if not any(first <= month <= last for first, last in known)]
        if empty:
            raise UserError(f"{self.source}: no rows in month {', '.join(empty)}, which {selection.start} to {selection.stop} asks for")


def _months(part: Part, month: Month | None) -> tuple[Month, Month] | None:
    """First and last month of a part, if known."""
    if part.steps is not None:
        return month_of_step(part.steps[0]), month_of_step(part.steps[1])
    return None if month is None else (month, month)


def _overlaps(part: Part, month: Month | None, selection: Selection) -> bool:
    """Whether a part may lie in the selection's months."""
    if part.steps is not None:
        return part.steps[0] < selection.steps.stop and part.steps[1] >= selection.steps.start
    return month is None or month.first_step in selection.steps


def _share(part: Part, month: Month | None, selection: Selection) -> Share:
    if part.steps is not None:
        return selection.share(*part.steps)
    if month is not None:
        return selection.share_of_month(month)
    return Share.SOME if selection.needs_steps or selection.fraction < 1 else Share.ALL


def survey(
    source: str,
    variables: VariableSet = KAGGLE,
    *,
    targets: bool = True,
    sample_id: bool = True,
    within: str | None = None,
    notice: Notice | None = None,
) -> Survey:
    """Look once at a file, or at all parquet and csv files of a folder, as :func:`storage.list_data` finds them: at footers and headers.

    ``variables`` name the columns that must be there. ``targets`` and ``sample_id`` say whether these columns are needed, and ``within`` is
    the folder whose names tell months, if the source is one file of it. ``notice`` is called with one sentence when files are passed over,
    and with one when columns are ignored.
    Raises UserError for a file that cannot be read, and for a missing or repeated column or one of another type.
    """
    place = storage.absolute(source)
    listed = storage.list_data(place, is_table)
    sizes = listed.sizes
    if not sizes and any(map(parse_file_name, listed.passed_over)):
        raise UserError(f"{source}: holds netCDF files; run `leapray convert {shown(source)} DEST` first and use DEST")
    if not sizes:
        raise UserError(
            f"{placed(source)}: "
            + (f"no {' or '.join(SUFFIXES)} files" if storage.exists(place) else "no such file or folder")
            + listed.remark
        )
    if notice and listed.notice:
        notice(listed.notice)
    with ThreadPoolExecutor(_HEADERS_AT_ONCE) as pool:
        headers = list(pool.map(read_header, sizes, sizes.values(), repeat(storage.absolute(within or source))))
    extra: dict[str, str] = {}
    narrow: dict[str, str] = {}
    checked: pa.Schema | None = None
    for header in headers:
        # the files of one folder mostly have one schema
        if checked is None or not header.schema.equals(checked):
            extra |= dict.fromkeys(check_columns(header.path, header.schema, variables, targets=targets, sample_id=sample_id), header.path)
            narrow |= dict.fromkeys(narrow_columns(header.schema, variables), header.path)
            checked = header.schema
    if notice and (broken := [header.path for header in headers if not header.ended]):
        notice(f"{broken[0]}: its last line has no end; it may have broken off in its last number")
    if extra and notice:
        name, path = next(iter(extra.items()))
        such = told(name) or "one without a name"
        notice(f"{path}: {len(extra)} further column(s) are ignored, such as {such}")
    if narrow and notice:
        name, path = next(iter(narrow.items()))
        notice(f"{path}: {len(narrow)} column(s) are float32 or less, such as {name}; raw values reach 1e-51, which only float64 holds")
    return Survey(source, headers, sizes)


def list_pieces(
    source: str, selection: Selection | None = None, variables: VariableSet = KAGGLE, *, targets: bool = True, notice: Notice | None = None
) -> list[Piece]:
    """:func:`survey` and :meth:`Survey.pieces` in one, for a source that is read once."""
    return survey(source, variables, targets=targets, notice=notice).pieces(selection)
