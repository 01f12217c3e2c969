"""One process at a time works in a directory: a file there says which one, and is written again as long as that process lives.

This works in every place that can be written. A process that was killed leaves its file behind; the next one takes the directory over at
once where it sees that the process has ended, and elsewhere after it has watched the file for a minute without a change. A process that was
only stopped meanwhile finds out by :func:`require_lock` that it has lost the directory.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from leapray import faults
from leapray.errors import UserError
from leapray.faults import told
from leapray.storage.listing import TEMPORARY, exists
from leapray.storage.reading import read_bytes
from leapray.storage.urls import filesystem, is_local, join
from leapray.storage.writing import create_bytes, remove, write_bytes

_FILE = f"{TEMPORARY}lock"
BEAT_SECONDS = 5.0
"""How often a process writes its file again."""
_PATIENCE = 12
"""Beats without a change after which the process of a file counts as ended."""

Notice = Callable[[str], None]


@dataclass(frozen=True)
class _Holder:
    """The process that holds a directory."""

    token: str
    host: str
    process: int
    machine: str
    """The running system and its namespace of processes, within which a number means one process."""
    began: str
    """When the process began, for its number may be given again."""
    beat: int = 0

    @classmethod
    def here(cls) -> _Holder:
        return cls(uuid.uuid4().hex, socket.gethostname(), os.getpid(), _machine(), _began(os.getpid()) or "")

    @property
    def ended(self) -> bool:
        """Whether this machine knows that the process has ended."""
        if not self.machine or self.machine != _machine():
            return False
        try:
            os.kill(self.process, 0)
        except ProcessLookupError:
            return True
        except OSError:
            pass
        found = _began(self.process)
        return found is not None and found != self.began


@contextmanager
def locked(directory: str, notice: Notice = lambda sentence: None) -> Iterator[str]:
    """Hold a directory for the length of the block; gives the token that :func:`require_lock` takes.

    Raises UserError where another process holds it. ``notice`` is told where that can only be seen by watching it for a while.
    """
    lock, ours = join(directory, _FILE), _Holder.here()
    made = is_local(directory) and not exists(directory)
    _take(directory, lock, ours, notice)
    ended = threading.Event()
    heart = threading.Thread(target=_beat, args=(lock, ours, ended), name="lock", daemon=True)
    heart.start()
    try:
        yield ours.token
    finally:
        ended.set()
        heart.join()
        # what cannot be removed now is no longer written again
        with suppress(UserError):
            if _is(_read(lock), ours.token):
                remove(lock)
        if made:
            with suppress(OSError):
                os.rmdir(filesystem(directory)[1])


def require_lock(directory: str, token: str) -> None:
    """Raise UserError if another process has taken over a directory, which it does where this one seemed to have ended."""
    if _is_others(_read(join(directory, _FILE)), token):
        raise UserError(f"{directory}: another process has taken it over, since this one gave no sign of life; this one ends")


def _take(directory: str, lock: str, ours: _Holder, notice: Notice) -> None:
    content = _written(ours)
    while not create_bytes(lock, content):
        theirs = _read(lock)
        # an upload whose answer was lost is repeated
        if _is(theirs, ours.token):
            return
        if theirs is None:
            continue
        holder = _parsed(theirs)
        if not (holder and holder.ended):
            _watch(directory, lock, theirs, holder, notice)
        if _read(lock) == theirs:
            remove(lock)


def _watch(directory: str, lock: str, theirs: bytes, holder: _Holder | None, notice: Notice) -> None:
    """Return once the file has not changed for so long that its process must have ended. Raises UserError as soon as it changes."""
    who = f"process {holder.process} on {told(holder.host)}" if holder else "another process"
    notice(f"{directory}: {who} may still work in it; waiting up to {_PATIENCE * BEAT_SECONDS:g} s to see whether it does")
    for _ in range(_PATIENCE):
        faults.sleep(BEAT_SECONDS)
        now = _read(lock)
        if now is None:
            return
        if now != theirs:
            raise UserError(f"{directory}: {who} works in it now; wait until it has ended, or choose another directory")


def _beat(lock: str, ours: _Holder, ended: threading.Event) -> None:
    """Write the file again and again until the directory is given back or lost."""
    beat = 0
    while not ended.wait(BEAT_SECONDS):
        beat += 1
        # the next beat may succeed
        with suppress(UserError):
            if _is_others(_read(lock), ours.token):
                return
            write_bytes(lock, _written(replace(ours, beat=beat)))


def _written(holder: _Holder) -> bytes:
    return json.dumps(asdict(holder)).encode()


def _parsed(content: bytes) -> _Holder | None:
    """What a file says, if it is whole."""
    try:
        return _Holder(**json.loads(content))
    except (ValueError, TypeError):
        return None


def _read(lock: str) -> bytes | None:
    """The content of a file; None if it is not there, as when its process has just given the directory back."""
    try:
        return read_bytes(lock)
    except UserError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        return None


def _is(content: bytes | None, token: str) -> bool:
    holder = _parsed(content) if content else None
    return holder is not None and holder.token == token


def _is_others(content: bytes | None, token: str) -> bool:
    """Whether a file is whole and another process's; a store may show one that is just being written."""
    holder = _parsed(content) if content else None
    return holder is not None and holder.token != token


def _machine() -> str:
    """The running system and its namespace of processes; empty where they have no name."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _began(process: int) -> str | None:
    """When a process began, in ticks of the system; empty for one that has ended but is not waited for, None if that cannot be seen."""
    with suppress(OSError, IndexError):
        # a command's name may hold spaces and brackets
        fields = Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    return None
