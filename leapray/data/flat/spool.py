"""A temporary file that turns columns read one after another into batches of rows, outside a process's own memory."""

from __future__ import annotations

import os
import tempfile
from types import TracebackType
from typing import Self

import numpy as np

from leapray.errors import UserError
from leapray.faults import FULL


class Spool:
    """``rows`` rows of ``columns`` float64 in batches of ``batch_rows``, written a few columns at a time and read a batch at a time.

    Each batch lies in one piece, column by column. The file has no name, so that it is gone with its process, however that ends.
    Raises UserError where the directory for temporary files has no room.
    """

    def __init__(self, rows: int, batch_rows: int, columns: int) -> None:
        self._rows, self._batch_rows, self._columns = rows, batch_rows, columns
        size = 8 * rows * columns
        directory = tempfile.gettempdir()
        try:
            self._file = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115
            os.posix_fallocate(self._file.fileno(), 0, max(size, 1))
        except (OSError, OverflowError) as error:
            if isinstance(error, OSError) and error.errno not in FULL:
                raise
            raise UserError(
                f"{directory}: no room for {size / 1e9:.1f} GB, which reading a large row group takes for a while; free some or set TMPDIR"
            ) from error

    def __len__(self) -> int:
        """Number of batches."""
        return -(-self._rows // self._batch_rows)

    def batch_rows(self, batch: int) -> int:
        """Rows of one batch; the last may have fewer."""
        return min(self._batch_rows, self._rows - batch * self._batch_rows)

    def write(self, batch: int, first: int, values: np.ndarray) -> None:
        """Write the columns from number ``first`` on of one batch, ``(c, n)`` C-contiguous."""
        at = self._start(batch) + 8 * first * self.batch_rows(batch)
        left = values.data.cast("B")
        while left:
            written = os.pwrite(self._file.fileno(), left, at)
            left, at = left[written:], at + written

    def read(self, batch: int) -> np.ndarray:
        """All columns of one batch, ``(columns, n)``."""
        values = np.empty((self._columns, self.batch_rows(batch)))
        left, at = values.data.cast("B"), self._start(batch)
        while left:
            read = os.preadv(self._file.fileno(), [left], at)
            left, at = left[read:], at + read
        return values

    def _start(self, batch: int) -> int:
        return 8 * self._columns * batch * self._batch_rows

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()
