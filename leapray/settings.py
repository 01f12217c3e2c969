"""What a directory was made with: noted in it, compared before it is continued, and the difference said."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from leapray import storage
from leapray.errors import UserError


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one mapping of dotted keys."""
    if not isinstance(value, Mapping):
        return {prefix: value}
    return {key: leaf for name, item in value.items() for key, leaf in flatten(item, f"{prefix}.{name}" if prefix else str(name)).items()}


def difference(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """What two recipes' plain values disagree on, as ``key: theirs, now ours``; empty if nothing."""
    old, new = flatten(theirs), flatten(ours)
    changed = [key for key in dict.fromkeys([*old, *new]) if old.get(key) != new.get(key)]
    return "; ".join(f"{key}: {old.get(key)!r}, now {new.get(key)!r}" for key in changed)


def claim(directory: str, file: str, settings: Mapping[str, Any], what: str, results: str) -> None:
    """Note in ``directory`` the settings that ``what`` is made with, so that it is only ever continued with the same ones.

    A note without results, files whose names end with ``results``, binds nobody. Raises UserError, with the difference, when the
    results are of other settings, or of none that are known, and where the directory is a file.
    """
    storage.require_folder(directory)
    name = storage.join(directory, file)
    if storage.list_files(directory, results):
        if not storage.exists(name):
            raise UserError(f"{directory}: holds {results} files but no {file}; choose an empty place for {what}")
        if changed := difference(settings, storage.read_json(name)):
            raise UserError(f"{directory}: holds {what} of other settings ({changed}); choose another place or remove it")
    else:
        storage.write_json(name, settings)
