"""Work that is not done twice: the plain result of a task, noted once what the task wrote is complete."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from leapray import storage


def once(url: str, work: Callable[[], Any]) -> Any:
    """The json value noted at ``url``, or else what ``work`` gives, noted there when it returns.

    What ``work`` writes must be the same each time: it is done again when the note could not be written before the end.
    """
    if storage.exists(url):
        return storage.read_json(url)
    result = work()
    storage.write_json(url, result)
    return result
