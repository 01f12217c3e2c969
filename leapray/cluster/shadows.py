"""Files of the working directory that have the name of a module that Ray's processes import, and would be imported in its place.

Ray puts the driver's working directory before everything else on its workers' path. Nothing here imports Ray.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder
from importlib.metadata import PackageNotFoundError, distribution

from leapray.errors import UserError

_PROGRAMS = {
    *("__main__", "antigravity", "ensurepip", "idlelib", "lib2to3", "nturl2path", "pydoc_data", "test", "this", "tkinter", "turtle"),
    *("turtledemo", "venv"),
}
"""Modules of Python that no other imports, so that a project may have its own."""
_ROOTS = ("leapray", "ray", "torch", "pyarrow", "s3fs")
_REQUIREMENT = re.compile(r"[A-Za-z0-9][\w.-]*")


def shadows(directory: str) -> Iterator[str]:
    """Paths in a directory that would be imported in place of a module of Python, of Ray or of what they and leapray require."""
    required: set[str] | None = None
    for name, path in _modules(directory):
        if name in sys.stdlib_module_names:
            # those that are part of the interpreter are found before any file
            if name not in _PROGRAMS and BuiltinImporter.find_spec(name) is None and FrozenImporter.find_spec(name) is None:
                yield path
            continue
        if (name == "leapray" and _runs_from(path)) or not _installed_elsewhere(name, path):
            continue
        required = _required() if required is None else required
        if name in required:
            yield path


def refuse(directory: str) -> None:
    """Raise UserError for the first of the :func:`shadows`."""
    for path in shadows(directory):
        raise UserError(sentence(path))


def refuse_own() -> None:
    """:func:`refuse` the working directory where this process itself imports from it, as under ``python -c`` and ``python -m``.

    Raises UserError too where it was removed, which libraries end the process for.
    """
    try:
        here = os.getcwd()
    except FileNotFoundError as error:
        raise UserError("the working directory was removed; change to another one") from error
    if here in sys.path or "" in sys.path:
        refuse(here)


def sentence(path: str) -> str:
    """What is said of such a file."""
    name = os.path.basename(path).partition(".")[0]
    return f"{path} has the name of the module {name}, and Ray's processes would import it instead; rename it, or run in another directory"


def _modules(directory: str) -> Iterator[tuple[str, str]]:
    """Names of the modules and packages that lie in a directory, with their paths."""
    with suppress(OSError):
        for entry in sorted(os.listdir(directory)):
            path = os.path.join(directory, entry)
            name, dot, suffix = entry.partition(".")
            file = suffix == "py" or suffix.endswith("so")
            # a folder without this file is imported only where no other place has the name
            package = not dot and os.path.isfile(os.path.join(path, "__init__.py"))
            if file or package:
                yield name, path


def _runs_from(path: str) -> bool:
    """Whether this leapray itself lies there, as in a working copy."""
    return os.path.realpath(os.path.dirname(os.path.dirname(__file__))) == os.path.realpath(path)


def _installed_elsewhere(name: str, path: str) -> bool:
    """Whether the name is found on the path of modules outside the folder of this file."""
    directory = os.path.realpath(os.path.dirname(path))
    others = [entry for entry in sys.path if os.path.realpath(entry or os.curdir) != directory]
    try:
        found = PathFinder.find_spec(name, others)
    except (ImportError, ValueError):
        return False
    return found is not None and found.origin is not None


def _required() -> set[str]:
    """Top-level modules of the packages that are installed for leapray and Ray."""
    found: set[str] = {"leapray"}
    seen: set[str] = set()
    waiting = list(_ROOTS)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in seen:
            continue
        seen.add(name)
        with suppress(PackageNotFoundError):
            package = distribution(name)
            found.update(file.parts[0].partition(".")[0] for file in package.files or () if file.parts[0] != "..")
            # Ray's extras are what leapray needs of it; those of others are not what their modules import
            lines = [line for line in package.requires or () if name == "ray" or "extra ==" not in line]
            waiting += [match[0] for line in lines if (match := _REQUIREMENT.match(line))]
    return found
