"""URLs of any fsspec file system: opening, listing, and writes that appear whole or not at all.

Credentials come only from the environment or from fsspec's own configuration; no URL or recipe carries them.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import fsspec
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from leapray.errors import UserError

_TEMPORARY = ".tmp-"


def filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """File system and bare path of a URL. Raises UserError for an unknown scheme or a missing extra."""
    try:
        return url_to_fs(str(url))
    except (ValueError, ImportError) as error:
        raise UserError(f"{url}: {error}") from error


def is_local(url: str) -> bool:
    return isinstance(filesystem(url)[0], LocalFileSystem)


def absolute(url: str) -> str:
    """The URL itself, or the absolute path of a local one, so that it means the same in every process."""
    return os.path.abspath(filesystem(url)[1]) if is_local(url) else str(url).rstrip("/")


def join(url: str, *parts: str) -> str:
    return "/".join([str(url).rstrip("/"), *parts])


def exists(url: str) -> bool:
    fs, path = filesystem(url)
    return bool(fs.exists(path))


def size(url: str) -> int:
    """Bytes of a file."""
    fs, path = filesystem(url)
    return int(fs.size(path))


def fingerprint(*urls: str) -> str:
    """Short digest that changes when one of the files does: of their names and what the file system knows of their content."""
    marks = []
    for url in urls:
        fs, path = filesystem(url)
        marks.append(f"{url} {fs.ukey(path)}")
    return hashlib.sha256("\n".join(marks).encode()).hexdigest()[:16]


def read_bytes(url: str) -> bytes:
    """Whole content of a file. Raises UserError when it does not exist."""
    fs, path = filesystem(url)
    try:
        return bytes(fs.cat_file(path))
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UserError(f"{url}: no such file") from error
    except PermissionError as error:
        raise UserError(f"{url}: may not be read ({error})") from error


def read_json(url: str) -> Any:
    """Parsed json file. Raises UserError when it is missing or not json."""
    try:
        return json.loads(read_bytes(url))
    except ValueError as error:
        raise UserError(f"{url}: not valid json ({error})") from error


def open_input(url: str) -> IO[bytes]:
    """A file opened for random reads. Raises UserError when it does not exist."""
    fs, path = filesystem(url)
    try:
        return fs.open(path, "rb")
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UserError(f"{url}: no such file") from error
    except PermissionError as error:
        raise UserError(f"{url}: may not be read ({error})") from error


@contextmanager
def atomic_file(url: str) -> Iterator[IO[bytes]]:
    """A file to write that takes its name only when the block ends without an error. Raises UserError where none can be written.

    An object store shows an object only once its upload is complete; a local file is written beside its place and renamed.
    """
    fs, path = filesystem(url)
    if not isinstance(fs, LocalFileSystem):
        with fs.transaction, fs.open(path, "wb") as file:
            yield file
        return
    target = Path(path)
    temporary = target.with_name(f"{_TEMPORARY}{uuid.uuid4().hex}-{target.name}")
    with _writing(url):
        target.parent.mkdir(parents=True, exist_ok=True)
        file = temporary.open("wb")
    try:
        with file:
            yield file
        with _writing(url):
            temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _writing(url: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{url}: cannot be written ({error.strerror or error})") from error


def write_bytes(url: str, content: bytes) -> None:
    with atomic_file(url) as file:
        file.write(content)


def write_json(url: str, value: Any) -> None:
    """Write json readably; numbers keep every bit of a float64, and NaN is refused."""
    write_bytes(url, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def list_files(url: str, suffix: str = "") -> list[str]:
    """Files at or below a URL whose names end with ``suffix``, sorted; leftovers of interrupted writes are passed over."""
    fs, path = filesystem(url)
    found = [path] if fs.isfile(path) else sorted(fs.find(path))
    names = [name for name in found if name.endswith(suffix) and not name.rsplit("/", 1)[-1].startswith(_TEMPORARY)]
    return names if is_local(url) else [fs.unstrip_protocol(name) for name in names]


def remove(url: str) -> None:
    """Remove a file or a whole directory, if it is there."""
    fs, path = filesystem(url)
    if fs.exists(path):
        fs.rm(path, recursive=True)
