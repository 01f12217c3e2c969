"""What a URL leads to: its file system, its path, and how places lie to one another."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import PurePosixPath
from typing import TypeVar
from urllib.parse import quote

import fsspec
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from leapray.errors import UserError
from leapray.faults import explained, refuse_secrets, retried, shown

_EXTRAS = {"gs": "gs", "gcs": "gs", "hf": "hf"}
T = TypeVar("T")
Pause = Callable[[float], None]


def filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """File system and bare path of a URL.

    Raises UserError for an unknown scheme, a missing extra, a URL that carries credentials, and a name that this process cannot spell.
    """
    refuse_secrets(str(url))
    # botocore's older mode waits without jitter and knows fewer errors; the variable reaches its clients wherever they are made
    os.environ.setdefault("AWS_RETRY_MODE", "standard")
    try:
        # other processes write too, so a listing is always asked for anew
        fs, path = url_to_fs(str(url), use_listings_cache=False)
        if isinstance(fs, LocalFileSystem):
            os.fsencode(path)
        return fs, path
    except ImportError as error:
        extra = _EXTRAS.get(str(url).partition("://")[0])
        needed = f"needs an extra, pip install 'leapray[{extra}]'" if extra else error
        raise UserError(f"{shown(url)}: {needed}") from error
    except UnicodeEncodeError as error:
        raise UserError(
            f"{shown(url)}: has letters that the encoding of this locale, {sys.getfilesystemencoding()}, lacks; set LC_ALL=C.UTF-8"
        ) from error
    except ValueError as error:
        raise UserError(f"{shown(url)}: {error}") from error


def ask(url: str, operation: Callable[[fsspec.AbstractFileSystem, str], T], verb: str = "read", pause: Pause | None = None) -> T:
    """What an operation on a URL's file system and path gives, tried again where an error passes by itself (:mod:`leapray.faults`)."""
    fs, path = filesystem(url)
    with explained(url, verb):
        return retried(lambda: operation(fs, path), pause)


def protocols(fs: fsspec.AbstractFileSystem) -> tuple[str, ...]:
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
    found, place = absolute(url), absolute(folder)
    return ".." not in str(url).split("/") and (found == place or found.startswith(f"{place}/"))


def require_outside(destination: str, source: str) -> None:
    """Raises UserError for a destination within what is read, which would be other files from then on."""
    if absolute(destination) == absolute(source):
        raise UserError(f"{shown(destination)}: is read for it, and would be replaced; choose another place")
    if lies_below(absolute(destination), source):
        raise UserError(f"{shown(destination)}: lies in {shown(source)}, which is read for it; choose a place outside")


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


def ascii_url(url: str) -> str:
    """A URL for what takes only ASCII: the other characters percent-encoded, as in a web address."""
    return "".join(sign if sign.isascii() else quote(sign, errors="surrogateescape") for sign in url)
