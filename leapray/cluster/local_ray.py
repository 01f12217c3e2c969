"""Starting a local Ray within a limit of time, and saying in one sentence why it could not be started (Ray)."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import ray

from leapray import TMPDIR
from leapray.cluster import preflight, ray_compat
from leapray.errors import UserError
from leapray.faults import shown, told

SILENT: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
SECONDS = "LEAPRAY_RAY_START_SECONDS"
"""Variable with the seconds that a start may take."""
_SECONDS, _GRACE_SECONDS = 50.0, 5.0
"""The limit, so that a verb says within a minute that Ray cannot be started; and what Ray gets to let go of this process."""
_TROUBLE = re.compile(r"Check failed|\b[FC]\b .*\.cc:|Error|No space left|Cannot|cannot|failed", re.IGNORECASE)


class _TooLong(BaseException):
    """The limit has passed. Not an Exception, so that Ray's own code does not take it for a failed attempt."""


def start_here(cpus: int) -> None:
    """Start Ray on this machine with so many logical CPUs, in a short directory of the user's own.

    Raises UserError with the cause and the remedy where that is known before, and where Ray has not started within the limit.
    """
    preflight.refuse_obstacles()
    folder = preflight.ray_folder()
    options: dict[str, Any] = {
        # whatever "ray start" left running on this machine: RAY_ADDRESS alone decides what is joined
        "address": "local",
        "num_cpus": cpus,
        "include_dashboard": True,
        "dashboard_host": "127.0.0.1",
        **ray_compat.folder_option(folder.path),
    }
    if folder.spill:
        options["object_spilling_directory"] = folder.spill

    def begin() -> None:
        with _temporary(folder.temporary):
            try:
                ray.init(**options, **SILENT)
            except Exception:
                if ray.is_initialized():
                    raise
                ray.init(**options, **SILENT)

    logs = f"{folder.path}/session_latest/logs"
    try:
        limited(begin, f"Ray could not be started on this machine; its logs are in {logs}")
    except UserError:
        raise
    except Exception as error:
        # what was good before the start may not be so any more
        preflight.refuse_obstacles()
        raise UserError(
            f"Ray could not be started on this machine ({_last_words(logs) or told(shown(_line(error)), 300)}); its logs are in {logs}"
        ) from error


def limited(begin: Callable[[], None], sentence: str) -> None:
    """Let Ray begin, without what its native code writes to the terminal, within the limit of time.

    ``sentence`` is what is said if Ray does not begin in time, or ends this process. Processes that were started are killed if it fails.
    Raises UserError after the limit.
    """
    seconds = _seconds()
    late = f"{sentence}; it was given {seconds:g} s, and on a slow machine more may help: set {SECONDS}"
    with _last_word(sentence):
        # the process that has the last word is left alone
        before = _descendants()
        try:
            with _alarm(seconds, before):
                try:
                    with _without_stderr():
                        begin()
                except BaseException:
                    _clear(before)
                    raise
        except _TooLong:
            raise UserError(late) from None


def _seconds() -> float:
    given = os.environ.get(SECONDS, "")
    try:
        seconds = float(given or _SECONDS)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < threading.TIMEOUT_MAX:
        raise UserError(f"{SECONDS} is {told(given)}, expected a number of seconds above 0")
    return seconds


@contextmanager
def _alarm(seconds: float, before: set[int]) -> Iterator[None]:
    """Raise _TooLong in the block after so many seconds; end the process where native code does not let it be raised.

    Then the processes that it has started are ended too, without those that were there ``before``.
    """

    def end() -> None:
        _kill(_descendants() - before)
        os._exit(2)

    def raise_late(number: int, frame: FrameType | None) -> None:
        raise _TooLong

    last = threading.Timer(seconds + _GRACE_SECONDS, end)
    last.daemon = True
    last.start()
    # only the main thread is told of signals
    main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGALRM, raise_late) if main else None
    if main:
        signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        last.cancel()
        if main:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, handler)


@contextmanager
def _temporary(directory: str | None) -> Iterator[None]:
    """Give the processes that start in the block another TMPDIR; where they run leapray, it is what this process has."""
    if directory is None:
        yield
        return
    kept = os.environ["TMPDIR"]
    os.environ |= {"TMPDIR": directory, TMPDIR: kept}
    try:
        yield
    finally:
        os.environ["TMPDIR"] = kept
        del os.environ[TMPDIR]


@contextmanager
def _last_word(sentence: str) -> Iterator[None]:
    """Let another process say ``sentence`` if this one ends within the block: Ray's native code may end it without a word."""
    script = 'read -r _ || printf "error: %s\\n" "$1" >&2'
    try:
        # Ray kills the processes of its driver's group with it
        guard = subprocess.Popen(
            ["/bin/sh", "-c", script, "sh", os.fsencode(sentence)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError:
        yield
        return
    try:
        yield
    finally:
        guard.communicate(b"\n")


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Close the terminal to what native code writes there; an exception still tells what went wrong."""
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _clear(before: set[int]) -> None:
    """End what a start that failed has left behind."""
    with suppress(Exception):
        ray.shutdown()
    _kill(_descendants() - before)


def _descendants() -> set[int]:
    """Processes that this one has started, and theirs."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc") if os.path.isdir("/proc") else ():
        with suppress(OSError, ValueError, IndexError):
            # a command's name may hold spaces and brackets
            parent = int(Path(f"/proc/{name}/stat").read_text(errors="replace").rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(name))
    found: set[int] = set()
    waiting = [os.getpid()]
    while waiting:
        theirs = children.get(waiting.pop(), [])
        found.update(theirs)
        waiting += theirs
    return found


def _kill(processes: set[int]) -> None:
    for process in processes:
        with suppress(OSError):
            os.kill(process, signal.SIGKILL)


def _last_words(logs: str) -> str | None:
    """The last line of trouble in the logs of Ray's head."""
    for name in ray_compat.START_LOGS:
        with suppress(OSError):
            lines = Path(logs, name).read_text(errors="replace").splitlines()
            if troubled := [line for line in lines if _TROUBLE.search(line)]:
                return told(shown(" ".join(troubled[-1].split())), 300)
    return None


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
