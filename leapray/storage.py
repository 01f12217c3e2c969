"""URLs of any fsspec file system: opening, listing, and writes that appear whole or not at all.

Credentials come only from the environment or from fsspec's own configuration; no URL or recipe carries them. Errors that pass by
themselves are waited out, others become a UserError that names the URL (see :mod:`leapray.faults`).
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path, PurePosixPath
from typing import IO, Any, TypeVar, cast

import fsspec
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from leapray.errors import UserError
from leapray.faults import IncompleteReadError, explained, passing, refuse_secrets, retried, shown, told

_TEMPORARY = ".tmp-"
_JOBS_COPY = "/runtime_resources/working_dir_files/"
"""Where on a node Ray unpacks what a job was submitted with."""
_EXTRAS = {"gs": "gs", "gcs": "gs", "hf": "hf"}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_MARK_BLOCKS, _MARK_BYTES = 16, 2**16
_JSON_BYTES = 128 << 20
"""The most that a json file may hold, unless more is expected of it: parsed, it takes up to twenty times as much memory."""
_MARKS = ("ETag", "etag", "md5Hash", "crc32c", "blob_id")
"""What stores call the digest of an object's content."""
_TIMES = ("mtime", "LastModified", "last_modified", "updated", "created")
"""What file systems call the time of the last change."""

T = TypeVar("T")
Pause = Callable[[float], None]


def filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """File system and bare path of a URL. Raises UserError for an unknown scheme, a missing extra, or a URL that carries credentials."""
    refuse_secrets(str(url))
    # botocore's older mode waits without jitter and knows fewer errors; the variable reaches its clients wherever they are made
    os.environ.setdefault("AWS_RETRY_MODE", "standard")
    try:
        # other processes write too, so a listing is always asked for anew
        return url_to_fs(str(url), use_listings_cache=False)
    except ImportError as error:
        extra = _EXTRAS.get(str(url).partition("://")[0])
        needed = f"needs an extra, pip install 'leapray[{extra}]'" if extra else error
        raise UserError(f"{shown(url)}: {needed}") from error
    except ValueError as error:
        raise UserError(f"{shown(url)}: {error}") from error


def _ask(url: str, operation: Callable[[fsspec.AbstractFileSystem, str], T], verb: str = "read", pause: Pause | None = None) -> T:
    fs, path = filesystem(url)
    with explained(url, verb):
        return retried(lambda: operation(fs, path), pause)


def _protocols(fs: fsspec.AbstractFileSystem) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


def is_local(url: str) -> bool:
    return isinstance(filesystem(url)[0], LocalFileSystem)


def absolute(url: str) -> str:
    """The URL as listings spell it, or the absolute path of a local one, so that it means the same in every process."""
    fs, path = filesystem(url)
    if isinstance(fs, LocalFileSystem):
        return os.path.abspath(path)
    # the outer file system of a chain such as simplecache::s3:// knows only its own part of the URL
    return (str(url) if "::" in str(url) else fs.unstrip_protocol(path)).rstrip("/")


def join(url: str, *parts: str) -> str:
    return "/".join([str(url).rstrip("/"), *parts])


def lies_below(url: str, folder: str) -> bool:
    """Whether one is the other or lies below it, by name; a name with ``..`` does not."""
    place = absolute(folder)
    return ".." not in str(url).split("/") and (absolute(url) == place or absolute(url).startswith(f"{place}/"))


def require_outside(destination: str, source: str) -> None:
    """Raises UserError for a destination within what is read, which would be other files from then on."""
    if lies_below(destination, source):
        raise UserError(f"{shown(destination)}: lies in {shown(source)}, which is read for it; choose a place outside")


def exists(url: str) -> bool:
    """Whether a file or directory is there. Raises UserError where that cannot be told."""
    return _ask(url, _info) is not None


def size(url: str) -> int:
    """Bytes of a file. Raises UserError when it does not exist or its server tells no size."""
    found = _ask(url, lambda fs, path: fs.info(path)["size"])
    if found is None:
        raise UserError(f"{shown(url)}: its server tells no size")
    return int(found)


def _info(fs: fsspec.AbstractFileSystem, path: str) -> dict[str, Any] | None:
    """What a file system knows of a path, None if nothing is there; unlike ``fs.exists``, which calls every error of a web server so."""
    try:
        return cast(dict[str, Any], fs.info(path))
    except (FileNotFoundError, NotADirectoryError) as error:
        if passing(error):
            raise
        return None


def fingerprint(*urls: str) -> str:
    """Short digest that changes when one of the files does: of their names and contents, so that a copy has the same one.

    Content is the store's own checksum, where it has one, else the size and 16 evenly spaced blocks of 64 KiB: up to 1 MiB, all of it.
    """
    digest = hashlib.sha256()
    for url in urls:
        digest.update(f"{url.rstrip('/').rpartition('/')[2]} {_content_mark(url)}\n".encode())
    return digest.hexdigest()[:16]


def _content_mark(url: str) -> str:
    info = _ask(url, lambda fs, path: fs.info(path))
    length = int(info["size"])
    if known := next((str(info[key]) for key in _MARKS if info.get(key)), None):
        return f"{length} {known}"
    digest = hashlib.sha256()
    starts = [max(length - _MARK_BYTES, 0) * block // (_MARK_BLOCKS - 1) for block in range(_MARK_BLOCKS)]
    with open_input(url) as file:
        for start in dict.fromkeys(starts):
            file.seek(start)
            digest.update(file.read(_MARK_BYTES))
    return f"{length} {digest.hexdigest()}"


def read_bytes(url: str, most: int | None = None) -> bytes:
    """Whole content of a file. Raises UserError when it does not exist, and when it has more than ``most`` bytes, which are not read."""
    _require_file(url)
    if most is None:
        return bytes(_ask(url, lambda fs, path: fs.cat_file(path)))
    found = _ask(url, lambda fs, path: fs.info(path)["size"])
    content = b""
    if found is None:
        # a server that tells no size
        content = _ask(url, lambda fs, path: _beginning(fs, path, most + 1))
        found = len(content)
    if found > most:
        raise UserError(f"{told(shown(url), 1000)}: has {found} bytes, expected {most} at the most")
    return content or bytes(_ask(url, lambda fs, path: fs.cat_file(path)))


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

    return _ask(url, read, pause=pause)


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
    file = _ask(url, lambda fs, path: fs.open(path, "rb"))
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
            _ask(url, lambda fs, path: fs.put_file(upload.name, path), "write")
        return
    target = Path(filesystem(url)[1])
    if _JOBS_COPY in str(target):
        raise UserError(
            f"{target}: is in the job's own copy of the working directory, which goes with Ray's session; give a URL, or an absolute "
            f"path that all nodes see"
        )
    temporary = target.with_name(f"{_TEMPORARY}{uuid.uuid4().hex}-{target.name}")
    began = time.time()
    with explained(url, "write"):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise UserError(f"{shown(url)}: cannot be written, for {target.parent} is a file or lies below one") from error
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


@contextmanager
def _writing(url: str, place: str) -> Iterator[None]:
    """Tell a full disk, also where the block's own code meets it."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise UserError(
            f"{shown(url)}: cannot be written, {place} is full ({error.strerror}); make room or choose another place"
        ) from error


def _clear_leftovers(target: Path, before: float) -> None:
    """Remove temporary files of this target that nobody has written to since ``before``."""
    for name in os.listdir(target.parent):
        if name.startswith(_TEMPORARY) and name.endswith(f"-{target.name}"):
            leftover = target.with_name(name)
            with suppress(FileNotFoundError):
                if leftover.stat().st_mtime < before:
                    leftover.unlink()


def write_bytes(url: str, content: bytes) -> None:
    with atomic_file(url) as file:
        file.write(content)


def write_json(url: str, value: Any) -> None:
    """Write json readably; numbers keep every bit of a float64, and NaN is refused."""
    write_bytes(url, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def list_files(url: str, suffix: str = "") -> list[str]:
    """Files at or below a URL whose names end with ``suffix``, sorted; leftovers of interrupted writes are passed over.

    Empty where nothing is. Raises UserError for a bucket that is not there and for what may not be listed.
    """
    return list(_found(url, suffix))


def list_sizes(url: str, suffix: str = "") -> dict[str, int]:
    """Files as :func:`list_files` gives them, with their bytes; by one listing where the store tells sizes in it."""
    return {name: size(name) if entry.get("size") is None else entry["size"] for name, entry in _found(url, suffix).items()}


def list_marks(url: str, suffix: str = "") -> dict[str, str]:
    """Files as :func:`list_files` gives them, with what tells that the content of one is another, all from one listing.

    That is the size with the store's own checksum, where it has one, else with the time of the last change: it is another too when a
    local file was touched or copied. Of a server that lists neither, every file has the same mark.
    """
    return {name: _listed_mark(entry) for name, entry in _found(url, suffix).items()}


def _listed_mark(entry: dict[str, Any]) -> str:
    return f"{entry.get('size')} {next((str(entry[key]) for key in (*_MARKS, *_TIMES) if entry.get(key)), '')}"


def _found(url: str, suffix: str) -> dict[str, dict[str, Any]]:
    """What the listing tells of each file, by URL."""
    fs = filesystem(url)[0]
    # fsspec's own walk of these passes over a folder that may not be listed
    found = dict(_walk(url)) if {"file", "http"} & set(_protocols(fs)) else _find(url)
    return {name: found[name] for name in sorted(found) if name.endswith(suffix) and not name.rsplit("/", 1)[-1].startswith(_TEMPORARY)}


def _find(url: str) -> dict[str, dict[str, Any]]:
    fs = filesystem(url)[0]
    entries = _ask(url, lambda fs, path: fs.find(path, detail=True), "list")
    return {fs.unstrip_protocol(name): entry for name, entry in entries.items()}


def _walk(url: str) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        files, folders = _entries(url)
    except UserError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        return
    yield from files.items()
    for folder in folders:
        yield from _walk(folder)
    # a web server lists nothing below a file
    if not files and not folders and not is_local(url) and "." in url.rsplit("/", 1)[-1]:
        yield url, {}


def list_folder(url: str) -> tuple[dict[str, int | None], list[str]]:
    """Files of one folder with their bytes, None where the listing tells none, and its subfolders. Raises UserError if it is not there."""
    files, folders = _entries(url)
    return {name: entry["size"] for name, entry in files.items()}, folders


def _entries(url: str) -> tuple[dict[str, dict[str, Any]], list[str]]:
    fs, local = filesystem(url)[0], is_local(url)
    files: dict[str, dict[str, Any]] = {}
    folders: list[str] = []
    for entry in _ask(url, lambda fs, path: fs.ls(path, detail=True), "list"):
        name = entry["name"].rstrip("/")
        inner = name if local else fs.unstrip_protocol(name)
        if entry["type"] == "directory":
            folders.append(inner)
        else:
            files[inner] = entry
    return files, folders


def is_empty(url: str) -> bool:
    """Whether a folder is not there or holds nothing, leftovers of interrupted writes aside."""
    if not exists(url):
        return True
    files, folders = list_folder(url)
    return not folders and all(name.rsplit("/", 1)[-1].startswith(_TEMPORARY) for name in files)


def remove(url: str) -> None:
    """Remove a file or a whole directory, if it is there."""

    def delete(fs: fsspec.AbstractFileSystem, path: str) -> None:
        # an attempt whose answer was lost may have removed it already
        with suppress(FileNotFoundError):
            fs.rm(path, recursive=True)

    _ask(url, delete, "remove")


def short_names(urls: Sequence[str]) -> list[str]:
    """A name for each directory: the last part of its path that is not ``model``, with the part before it, or else a number, where two
    would have the same."""
    parts = [[part for part in PurePosixPath(url).parts if part != "model"] or ["model"] for url in urls]
    names = [part[-1] for part in parts]
    longer = ["-".join(part[-2:]) if names.count(name) > 1 else name for part, name in zip(parts, names, strict=True)]
    given: list[str] = []
    for name in longer:
        again = (f"{name}-{number}" for number in count(1))
        given.append(name if longer.count(name) == 1 and name not in given else next(new for new in again if new not in [*given, *longer]))
    return given
