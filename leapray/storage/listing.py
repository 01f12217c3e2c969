"""What lies at a URL and below it: files, their sizes, and what tells one content from another."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import fsspec

from leapray.errors import UserError
from leapray.faults import passing, shown
from leapray.storage.reading import open_input
from leapray.storage.urls import ask, filesystem, is_local, protocols

TEMPORARY = ".tmp-"
"""What the names of files begin with that are being written."""
_MARK_BLOCKS, _MARK_BYTES = 16, 2**16
_AT_ONCE = 16
_MARKS = ("ETag", "etag", "md5Hash", "crc32c", "blob_id")
"""What stores call the digest of an object's content."""
_TIMES = ("mtime", "LastModified", "last_modified", "updated", "created")
"""What file systems call the time of the last change."""


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
    found = dict(_walk(url)) if {"file", "http"} & set(protocols(fs)) else _find(url)
    return {name: found[name] for name in sorted(found) if name.endswith(suffix) and not name.rsplit("/", 1)[-1].startswith(TEMPORARY)}


def _find(url: str) -> dict[str, dict[str, Any]]:
    fs = filesystem(url)[0]
    entries = ask(url, lambda fs, path: fs.find(path, detail=True), "list")
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
    for entry in ask(url, lambda fs, path: fs.ls(path, detail=True), "list"):
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
    return not folders and all(name.rsplit("/", 1)[-1].startswith(TEMPORARY) for name in files)
