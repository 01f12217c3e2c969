"""Reading files, whole or in parts, with patience."""

from __future__ import annotations

import io
import json
import os
from typing import IO, Any, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from leapray.errors import UserError
from leapray.faults import IncompleteReadError, explained, retried, shown, told
from leapray.storage.urls import Pause, ask, filesystem, is_local

_JSON_BYTES = 128 << 20
"""The most that a json file may hold, unless more is expected of it: parsed, it takes up to twenty times as much memory."""


def read_bytes(url: str, most: int | None = None) -> bytes:
    """Whole content of a file. Raises UserError when it does not exist, and when it has more than ``most`` bytes, which are not read."""
    _require_file(url)
    if most is None:
        return bytes(ask(url, lambda fs, path: fs.cat_file(path)))
    found = ask(url, lambda fs, path: fs.info(path)["size"])
    content = b""
    if found is None:
        # a server that tells no size
        content = ask(url, lambda fs, path: _beginning(fs, path, most + 1))
        found = len(content)
    if found > most:
        raise UserError(f"{told(shown(url), 1000)}: has {found} bytes, expected {most} at the most")
    return content or bytes(ask(url, lambda fs, path: fs.cat_file(path)))


def _beginning(fs: fsspec.AbstractFileSystem, path: str, most: int) -> bytes:
    parts: list[bytes] = []
    with fs.open(path, "rb") as file:
        while most and (part := file.read(most)):
            parts.append(part)
            most -= len(part)
    return b"".join(parts)


def _require_file(url: str) -> None:
    """Raises UserError for a local device or pipe, also behind a link, for reading it might never end."""
    fs, path = filesystem(url)
    if isinstance(fs, LocalFileSystem) and os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
        raise UserError(f"{told(path, 1000)}: is a device or a pipe, expected a file; copy its content into one first")


def read_range(url: str, start: int, stop: int, pause: Pause | None = None) -> bytes:
    """Bytes ``start`` to ``stop`` of a file, or to its end from a server that knows no ranges.

    ``pause(seconds)`` takes the place of sleeping between attempts. Raises UserError when the file does not exist or is shorter.
    """

    def read(fs: fsspec.AbstractFileSystem, path: str) -> bytes:
        content = bytes(fs.cat_file(path, start=start, end=stop))
        if len(content) < stop - start:
            raise IncompleteReadError(f"{len(content)} bytes, expected {stop - start}")
        return content[start:] if len(content) > stop - start else content

    return ask(url, read, pause=pause)


def read_json(url: str, most: int = _JSON_BYTES) -> Any:
    """Parsed json file. Raises UserError when it is missing, not json, or larger than ``most`` bytes."""
    try:
        return json.loads(read_bytes(url, most))
    except ValueError as error:
        raise UserError(f"{shown(url)}: not valid json ({error})") from error
    except RecursionError as error:
        raise UserError(f"{shown(url)}: not json that leapray writes (it is nested too deeply)") from error


def open_input(url: str) -> IO[bytes]:
    """A file opened for random reads, which repeats a read that fails or comes short. Raises UserError when it does not exist."""
    _require_file(url)
    file = ask(url, lambda fs, path: fs.open(path, "rb"))
    return file if is_local(url) else cast(IO[bytes], _PatientFile(url, file))


class _PatientFile(io.BufferedIOBase):
    """A remote file whose every read is repeated at its offset until it has succeeded or the attempts are used up."""

    def __init__(self, url: str, file: Any) -> None:
        self._url, self._file, self._size = url, file, file.size

    def read(self, size: int | None = -1) -> bytes:
        start = self._file.tell()
        wanted = -1 if size is None else size
        with explained(self._url):
            return retried(lambda: self._read(start, wanted))

    read1 = read

    def _read(self, start: int, wanted: int) -> bytes:
        if self._file.tell() != start:
            self._file.seek(start)
        content = bytes(self._file.read(wanted))
        if self._size is not None and len(content) < (left := max(self._size - start, 0)) and not len(content) == wanted:
            raise IncompleteReadError(f"{len(content)} bytes, expected {left if wanted < 0 else min(left, wanted)}")
        return content

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._file.seekable())

    def close(self) -> None:
        self._file.close()
        super().close()
