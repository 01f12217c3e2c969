"""Folders below a URL, one listing each: in depth, and each once, whatever links lead to it."""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from leapray.errors import UserError
from leapray.storage.urls import ask, filesystem, is_local


@dataclass(frozen=True)
class _Folder:
    """A folder, where it really is, whatever links lead to it, and the folders beside it."""

    url: str
    real: str
    beside: tuple[str, ...] = ()


@dataclass(frozen=True)
class Opened:
    """What lies in a folder: files with what the listing tells of them, and folders."""

    url: str
    entries: dict[str, dict[str, Any]]
    folders: list[str]
    beside: tuple[str, ...]


def walk(url: str, enters: Callable[[str], bool]) -> Iterator[Opened]:
    """Folders in depth, those that are links after all others, each real folder once. ``enters`` says by its URL whether one is opened.

    A folder that is removed meanwhile counts as never there. Raises UserError if that is the URL itself.
    """
    local = is_local(url)
    start = os.path.realpath(filesystem(url)[1]) if local else url
    waiting, linked, seen = [_Folder(url, start)], deque[_Folder](), set[str]()
    while waiting or linked:
        folder = waiting.pop() if waiting else linked.popleft()
        if folder.real in seen or (folder.url != url and f"{start}/".startswith(f"{folder.real.rstrip('/')}/")):
            continue
        seen.add(folder.real)
        try:
            files, folders, links = entries(folder.url)
        except UserError as error:
            if folder.url == url or not isinstance(error.__cause__, FileNotFoundError):
                raise
            continue
        inner = {name: f"{folder.real.rstrip('/')}/{name.rsplit('/', 1)[-1]}" if local else name for name in folders if enters(name)}
        others = {name: os.path.realpath(name) for name in links if enters(name)}
        there = set(inner.values())
        beside = tuple(sorted([*inner, *(name for name, real in others.items() if real not in there)]))
        yield Opened(folder.url, files, [*folders, *links], folder.beside)
        waiting += [_Folder(name, real, beside) for name, real in sorted(inner.items(), reverse=True)]
        linked += [_Folder(name, real, beside) for name, real in sorted(others.items())]


def entries(url: str) -> tuple[dict[str, dict[str, Any]], list[str], list[str]]:
    """Files of one folder, its subfolders, and the links to folders in it."""
    fs, local = filesystem(url)[0], is_local(url)
    files: dict[str, dict[str, Any]] = {}
    folders: list[str] = []
    links: list[str] = []
    for entry in ask(url, lambda fs, path: fs.ls(path, detail=True), "list"):
        name = entry["name"].rstrip("/")
        inner = name if local else fs.unstrip_protocol(name)
        if entry["type"] == "directory":
            folders.append(inner)
        elif not entry.get("islink"):
            files[inner] = entry
        elif (target := _target(inner)) is None:
            # reading tells that the file behind the link is missing
            files[inner] = entry | {"type": "file"}
        elif stat.S_ISDIR(target.st_mode):
            links.append(inner)
        else:
            kind = "file" if stat.S_ISREG(target.st_mode) else "other"
            files[inner] = entry | {"type": kind, "size": target.st_size, "mtime": target.st_mtime}
    return files, folders, links


def _target(link: str) -> os.stat_result | None:
    """What a local link leads to; None if that is not there."""
    try:
        return os.stat(link)
    except OSError:
        return None
