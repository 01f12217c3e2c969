"""Standard output and standard error whose writer goes on when the disk behind them is full: the lines are lost, and that is told."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import IO, Any, cast

from leapray.faults import FULL


class Output:
    """One of the two streams, whichever object stands for it at the time."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.lost = ""
        """Why lines were lost, empty if none was."""

    @property
    def file(self) -> IO[str]:
        """This object as rich takes it."""
        return cast(IO[str], self)

    def write(self, text: str) -> int:
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(lambda: self._stream.flush())

    def close(self) -> None:
        """Write what is left. If that cannot be done either, give it up, so that Python does not fail on it at its end."""
        before, self.lost = self.lost, ""
        self.flush()
        if self.lost:
            with suppress(OSError), open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())
        self.lost = self.lost or before

    @property
    def _stream(self) -> IO[str]:
        stream = getattr(sys, self._name)
        # while it draws a bar, rich puts something before the stream that would come back here
        return cast(IO[str], getattr(stream, "rich_proxied_file", stream))

    def _try(self, operation: Callable[[], object]) -> None:
        try:
            operation()
        except OSError as error:
            if error.errno not in FULL:
                raise
            self.lost = error.strerror or str(error)

    def __getattr__(self, name: str) -> Any:
        if name == "rich_proxied_file":
            raise AttributeError(name)
        return getattr(self._stream, name)
