"""Writes that appear whole or not at all, and removals."""

from __future__ import annotations

import errno
import json
import os
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, cast

import fsspec

from leapray.errors import UserError
from leapray.faults import FULL, JOBS_COPY, explained, shown
from leapray.storage.listing import TEMPORARY
from leapray.storage.urls import ask, filesystem, is_local


@contextmanager
def atomic_file(url: str) -> Iterator[IO[bytes]]:
    """A file to write that takes its name only when the block ends without an error. Raises UserError where none can be written.

    A local file is written beside its place, down to the disk, and renamed, which also clears what killed writers of it left there. For
    another file system it is written to a temporary local file and uploaded whole, so that an upload can be repeated.
    """
    if not is_local(url):
        with _writing(url, tempfile.gettempdir()), tempfile.NamedTemporaryFile(prefix="leapray-") as upload:
            yield cast(IO[bytes], upload)
            upload.flush()
            ask(url, lambda fs, path: fs.put_file(upload.name, path), "write")
        return
    target = Path(filesystem(url)[1])
    _make_parent(url, target)
    temporary = target.with_name(f"{TEMPORARY}{uuid.uuid4().hex}-{target.name}")
    began = time.time()
    with explained(url, "write"):
        file = temporary.open("wb")
    try:
        with _writing(url, str(target.parent)), file:
            yield file
            file.flush()
            # else a crash of the machine may keep the new name and lose the content
            os.fsync(file.fileno())
        with explained(url, "write"):
            temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    _clear_leftovers(target, began)


def _make_parent(url: str, target: Path) -> None:
    """Make the folder of a local file. Raises UserError where that cannot be, or the file would not last."""
    if JOBS_COPY in str(target):
        raise UserError(
            f"{target}: is in the job's own copy of the working directory, which goes with Ray's session; give a URL, or an absolute "
            f"path that all nodes see"
        )
    with explained(url, "write"):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise UserError(f"{shown(url)}: cannot be written, for {target.parent} is a file or lies below one") from error


@contextmanager
def _writing(url: str, place: str) -> Iterator[None]:
    """Tell a full disk, also where the block's own code meets it."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise UserError(
            f"{shown(url)}: cannot be written, {place} is full ({error.strerror}); make room or choose another place"
        ) from error


def _clear_leftovers(target: Path, before: float) -> None:
    """Remove temporary files of this target that nobody has written to since ``before``."""
    for name in os.listdir(target.parent):
        if name.startswith(TEMPORARY) and name.endswith(f"-{target.name}"):
            leftover = target.with_name(name)
            with suppress(FileNotFoundError):
                if leftover.stat().st_mtime < before:
                    leftover.unlink()


def write_bytes(url: str, content: bytes) -> None:
    with atomic_file(url) as file:
        file.write(content)


def create_bytes(url: str, content: bytes) -> bool:
    """Write a file that is not there yet; whether it was not. Of several processes at once only one gets True, as far as the store can."""

    def create(fs: fsspec.AbstractFileSystem, path: str) -> bool:
        try:
            fs.pipe_file(path, content, mode="create")
        except FileExistsError:
            return False
        except OSError as error:
            # a store without conditional writes
            if error.errno != errno.ENOSYS:
                raise
            if fs.exists(path):
                return False
            fs.pipe_file(path, content)
        return True

    if not is_local(url):
        return ask(url, create, "write")
    target = Path(filesystem(url)[1])
    _make_parent(url, target)
    with explained(url, "write"), _writing(url, str(target.parent)):
        try:
            file = target.open("xb")
        except FileExistsError:
            return False
        try:
            with file:
                file.write(content)
        except OSError:
            target.unlink(missing_ok=True)
            raise
    return True


def write_json(url: str, value: Any) -> None:
    """Write json readably; numbers keep every bit of a float64, and NaN is refused."""
    write_bytes(url, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def remove(url: str) -> None:
    """Remove a file or a whole directory, if it is there."""

    def delete(fs: fsspec.AbstractFileSystem, path: str) -> None:
        # an attempt whose answer was lost may have removed it already
        with suppress(FileNotFoundError):
            fs.rm(path, recursive=True)

    ask(url, delete, "remove")
