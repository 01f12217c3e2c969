"""Work that is not done twice: the plain result of a task, noted once what the task wrote is complete."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from leapray import storage
from leapray.errors import UserError


def once(url: str, work: Callable[[], Any], files: Callable[[Any], list[str]] = lambda _: []) -> Any:
    """The json value noted at ``url``, or else what ``work`` gives, noted there when it returns.

    ``files`` names what the work of a result wrote: where one is gone, or the note is not whole, it is done again. What ``work`` writes
    must be the same each time.
    """
    if storage.exists(url):
        try:
            result = storage.read_json(url)
            if all(storage.exists(file) for file in files(result)):
                return result
        except UserError:
            # a note that a crash of the machine left empty
            pass
    result = work()
    storage.write_json(url, result)
    return result
