"""What lies at a URL and below it: files, their sizes, and what tells one content from another."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, cast

import fsspec

from leapray.errors import UserError
from leapray.faults import passing, shown, told
from leapray.storage.reading import open_input
from leapray.storage.urls import ask, filesystem, is_local, protocols
from leapray.storage.walking import Opened, entries, walk

TEMPORARY = ".tmp-"
"""What the names of files begin with that are being written."""
_MARK_BLOCKS, _MARK_BYTES = 16, 2**16
_AT_ONCE = 16
_MARKS = ("ETag", "etag", "md5Hash", "crc32c", "blob_id")
"""What stores call the digest of an object's content."""
_TIMES = ("mtime", "LastModified", "last_modified", "updated", "created")
"""What file systems call the time of the last change."""
_NAMED = 3
"""Files that a sentence names."""


def exists(url: str) -> bool:
    """Whether a file or directory is there. Raises UserError where that cannot be told."""
    return ask(url, _info) is not None


def size(url: str) -> int:
    """Bytes of a file. Raises UserError when it does not exist or its server tells no size."""
    found = ask(url, lambda fs, path: fs.info(path)["size"])
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
    return _fingerprint({url: {} for url in urls})


def fingerprint_below(url: str) -> str:
    """:func:`fingerprint` of the files that :func:`list_files` gives, asking nothing further of a store that lists its checksums."""
    return _fingerprint(_found(url, ""))


def _fingerprint(entries: Mapping[str, dict[str, Any]]) -> str:
    digest = hashlib.sha256()
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for url, mark in zip(entries, pool.map(_content_mark, entries, entries.values()), strict=True):
            digest.update(f"{url.rstrip('/').rpartition('/')[2]} {mark}\n".encode())
    return digest.hexdigest()[:16]


def _content_mark(url: str, entry: Mapping[str, Any]) -> str:
    """What tells one content from another; ``entry`` is what a listing says of the file, if anything."""
    info = entry if entry.get("size") is not None else ask(url, lambda fs, path: fs.info(path))
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


def list_files(url: str, suffix: str = "") -> list[str]:
    """Files at or below a URL whose names end with ``suffix``, sorted; leftovers of interrupted writes are passed over.

    This is for directories that leapray wrote; :func:`list_data` lists what people have. Empty where nothing is. Raises UserError for a
    bucket that is not there and for what may not be listed.
    """
    return list(_found(url, suffix))


def list_sizes(url: str, suffix: str = "") -> dict[str, int]:
    """Files as :func:`list_files` gives them, with their bytes; by one listing where the store tells sizes in it."""
    return {name: _size(name, entry) for name, entry in _found(url, suffix).items()}


def _size(name: str, entry: Mapping[str, Any]) -> int:
    return size(name) if entry.get("size") is None else int(entry["size"])


def _listed_mark(entry: Mapping[str, Any]) -> str:
    return f"{entry.get('size')} {next((str(entry[key]) for key in (*_MARKS, *_TIMES) if entry.get(key)), '')}"


def _found(url: str, suffix: str) -> dict[str, dict[str, Any]]:
    """What the listing tells of each file, by URL."""
    found = _listed(url)
    return {name: found[name] for name in sorted(found) if name.endswith(suffix) and not name.rsplit("/", 1)[-1].startswith(TEMPORARY)}


def _listed(url: str, enters: Callable[[str], bool] = lambda folder: True) -> dict[str, dict[str, Any]]:
    """All files at or below a URL. ``enters`` says by its URL whether a folder is opened, where folders are listed one by one."""
    fs = filesystem(url)[0]
    # fsspec's own walk of these passes over a folder that may not be listed, and over links
    if not {"file", "http"} & set(protocols(fs)):
        entries = ask(url, lambda fs, path: fs.find(path, detail=True), "list")
        return {fs.unstrip_protocol(name): entry for name, entry in entries.items()}
    found: dict[str, dict[str, Any]] = {}
    try:
        for opened in walk(url, enters):
            found |= opened.entries
            # a web server lists nothing below a file
            if not opened.entries and not opened.folders and not is_local(url) and "." in opened.url.rsplit("/", 1)[-1]:
                found[opened.url] = {}
    except UserError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
    return found


@dataclass(frozen=True)
class DataFiles:
    """The data files at or below ``url``, sorted by URL, with what the listing tells of each, and the names of those passed over."""

    url: str
    entries: Mapping[str, Mapping[str, Any]]
    passed_over: tuple[str, ...]

    @property
    def files(self) -> list[str]:
        return list(self.entries)

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each file."""
        return {name: _size(name, entry) for name, entry in self.entries.items()}

    @property
    def marks(self) -> dict[str, str]:
        """A text for each file that changes with its content, all from the one listing.

        It is the size with the store's own checksum, or without one with the time of the last change. A local file that was touched or
        copied therefore has another mark. A server that lists neither gives every file the same mark.
        """
        return {name: _listed_mark(entry) for name, entry in self.entries.items()}

    @property
    def notice(self) -> str | None:
        """One sentence that counts and names the files passed over; None if there is none."""
        return f"{shown(self.url)}: {passed_over_in_words(self.passed_over)}" if self.passed_over else None

    @property
    def remark(self) -> str:
        """The same as the end of a sentence that says that there is no data; empty if nothing was passed over."""
        return f"; {passed_over_in_words(self.passed_over)}" if self.passed_over else ""


def passed_over_in_words(names: Sequence[str]) -> str:
    """How many files were passed over, and the first names."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"passed over {len(names)} file{'' if len(names) == 1 else 's'}: {', '.join(map(told, names[:_NAMED]))}{more}"


def list_data(url: str, is_data: Callable[[str], bool]) -> DataFiles:
    """The files of a source at or below a URL that ``is_data`` takes by their URLs. All verbs read sources by this rule:

    - Below the URL, names that begin with ``.`` or ``_`` are ignored, those of folders with all that they hold.
    - A link to a folder is followed, but no folder is listed twice. A link to a folder that holds the URL itself is not followed.
    - All other files are passed over and named in :class:`DataFiles`: other suffixes, strange names, and what is no regular file.

    Empty where nothing is. Raises UserError for a bucket that is not there and for what may not be listed.
    """
    found, base = _listed(url, lambda folder: not _ignored(folder)), _base(url)
    names = [name for name in sorted(found) if not any(map(_ignored, name.removeprefix(base).split("/")))]
    taken = {name: found[name] for name in names if _readable(found[name]) and is_data(name)}
    return DataFiles(url, taken, tuple(_relative(name, base) for name in names if name not in taken))


def walk_data(url: str, enters: Callable[[str], bool] = lambda folder: True) -> Iterator[DataFolder]:
    """The folders at and below a URL one by one, in depth, by the rule of :func:`list_data`; ``enters`` says by its URL whether a folder
    below is listed. Raises UserError if nothing is there."""
    for opened in walk(url, lambda folder: not _ignored(folder) and enters(folder)):
        yield _data_folder(opened, _base(url))


def _data_folder(opened: Opened, base: str) -> DataFolder:
    kept = {name: entry for name, entry in opened.entries.items() if name == base or not _ignored(name)}
    strange = tuple(name for name, entry in kept.items() if not _readable(entry))
    return DataFolder(opened.url, {name: kept[name].get("size") for name in kept if name not in strange}, strange, opened.beside)


def list_data_folder(url: str) -> DataFolder:
    """One folder by the rule of :func:`list_data`."""
    return next(walk_data(url))


@dataclass(frozen=True)
class DataFolder:
    """One folder of a source: regular files with their bytes, None where the listing tells none, names that are no regular files, and the
    URLs of the folders beside it, itself among them, or none for the source itself."""

    url: str
    files: Mapping[str, int | None]
    strange: tuple[str, ...]
    beside: tuple[str, ...]


def _ignored(url: str) -> bool:
    """Whether the last part of a URL is a name that sources do not count."""
    return url.rsplit("/", 1)[-1].startswith((".", "_"))


def _readable(entry: Mapping[str, Any]) -> bool:
    """Whether an entry is a file to be read: a pipe or a socket would be waited for without end."""
    return entry.get("type", "file") == "file"


def _base(url: str) -> str:
    """A URL as listings spell it."""
    fs, path = filesystem(url)
    return path.rstrip("/") if is_local(url) else fs.unstrip_protocol(path).rstrip("/")


def _relative(name: str, base: str) -> str:
    return name.removeprefix(base).strip("/") or name.rsplit("/", 1)[-1]


def require_folder(url: str) -> None:
    """Raise UserError where a file has the name of a folder that is to be written to."""
    if (found := ask(url, _info)) is not None and found["type"] != "directory":
        raise UserError(f"{shown(url)}: is a file, expected a directory")


def list_folder(url: str) -> tuple[dict[str, int | None], list[str]]:
    """Files of one folder with their bytes, None where the listing tells none, and its subfolders, links to folders among them.

    Raises UserError if it is not there.
    """
    files, folders, links = entries(url)
    return {name: entry["size"] for name, entry in files.items()}, [*folders, *links]


def is_empty(url: str) -> bool:
    """Whether a folder is not there or holds nothing, leftovers of interrupted writes aside."""
    if not exists(url):
        return True
    files, folders = list_folder(url)
    return not folders and all(name.rsplit("/", 1)[-1].startswith(TEMPORARY) for name in files)
