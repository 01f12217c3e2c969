"""What a Ray that is started here needs of this machine, looked at before it is started. Nothing here imports Ray.

Each look is cheap. A verb asks before it starts Ray, and ``leapray doctor`` asks the same.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from leapray.cluster.ray_compat import SOCKET, store_bytes
from leapray.errors import UserError
from leapray.faults import told

LEAST_FILES = 256
"""Open files of one process: those of a small machine's Ray hold 40 to 80, and a process that works reads data beside them."""
_LEAST_THREADS = 500
"""Threads of the processes that Ray starts with before it does any work; each worker adds about 25."""
_LEAST_ROOM = 16 << 20
"""Bytes for the sockets and first logs of a session."""
_CODE_SPACE = 3 << 30
"""Address space of a driver beside the object store: its libraries and the stacks of its threads."""
_RAY = "ray"
"""Folder within the user's own, for Ray opens the one that it is given to everyone."""
_LONGEST_SOCKET = 107
"""The longest path in bytes that Linux takes for a socket."""
_CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
"""The limit and the use of a container's memory: of version 2, and of version 1."""
_TASKS = (
    ("/sys/fs/cgroup/pids.max", "/sys/fs/cgroup/pids.current"),
    ("/sys/fs/cgroup/pids/pids.max", "/sys/fs/cgroup/pids/pids.current"),
)
"""The same of its threads."""
_SHARED = "/dev/shm"
_CONNECT_SECONDS = 2.0


@dataclass(frozen=True)
class RayFolder:
    """Where a Ray that is started here keeps its files."""

    path: str
    """Of sockets and logs: below a directory of the user's own that no one else can enter."""
    spill: str | None
    """Of objects that find no room in memory; None where they go below ``path``."""
    temporary: str | None
    """What TMPDIR must be for Ray's own processes, whose sockets lie there too; None where it may stay as it is."""


def obstacles() -> Iterator[str]:
    """Why Ray could not be started on this machine: one sentence for each cause, with its remedy. Empty where nothing is known."""
    if reason := _no_loopback():
        yield f"Ray's processes speak to each other over 127.0.0.1, which does not work here ({reason}); run `ip link set lo up`"
    if sys.platform != "win32":
        yield from _limits()
    yield from _unspeakable()
    try:
        ray_folder()
    except UserError as error:
        yield str(error)


def refuse_obstacles() -> None:
    """Raise UserError with the first of the :func:`obstacles`."""
    for sentence in obstacles():
        raise UserError(f"Ray cannot be started on this machine: {sentence}")


def refuse_names() -> None:
    """Raise UserError for names that Ray does not take, wherever it runs."""
    for sentence in _unspeakable():
        raise UserError(sentence)


def _unspeakable() -> Iterator[str]:
    """Ray is told the command and the working directory, in UTF-8."""
    for text in (os.getcwd(), *sys.argv):
        try:
            text.encode()
        except UnicodeEncodeError:
            yield f"{told(text, 1000)}: has letters that are not UTF-8, which Ray does not take; rename it, or set LC_ALL=C.UTF-8"


def ray_folder() -> RayFolder:
    """The first directory that Ray's files can lie in: of RAY_TMPDIR and TMPDIR, then of those that a machine has.

    It must be the user's own, take files and sockets, and have a path that is short and ASCII. Objects that Ray spills go where the user
    asked for, as far as that can be written. Raises UserError, with the reason for each directory, where there is none.
    """
    asked = [os.environ[name] for name in ("RAY_TMPDIR", "TMPDIR") if os.environ.get(name)]
    own = os.environ.get("XDG_RUNTIME_DIR")
    reasons: dict[str, str] = {}
    # a session's own directory is removed when the user logs out, and those in memory are small
    for base in dict.fromkeys([*asked, "/tmp", "/var/tmp", *([own] if own else []), _SHARED]):
        if (reason := _unfit(base)) is None:
            return RayFolder(f"{_own_folder(base)}/{_RAY}", _spill(asked, base), _temporary(base))
        reasons[base] = reason
    listed = ", ".join(f"{base} {reason}" for base, reason in reasons.items())
    most = _LONGEST_SOCKET - len(SOCKET) - len(_RAY) - len(_own_folder("")) - 1
    raise UserError(
        f"its sockets and logs find no directory: {listed}; make room, or set RAY_TMPDIR to a directory of your own whose path has at most "
        f"{most} bytes"
    )


def _spill(asked: list[str], base: str) -> str | None:
    """The directory for objects that the user asked for, where Ray's sockets cannot lie in it."""
    spill = _own_folder(asked[0]) if asked and asked[0] != base else None
    return spill if spill and spill.isascii() and _unusable(spill) is None else None


def _temporary(base: str) -> str | None:
    given = os.environ.get("TMPDIR")
    return _own_folder(base) if given and given != base and _unfit(given) else None


def _unfit(base: str) -> str | None:
    """Why Ray's sockets and logs cannot lie in a directory; None if they can."""
    path = _own_folder(base)
    return _too_long(f"{path}/{_RAY}") or _unusable(path, sockets=True)


def _own_folder(base: str) -> str:
    return f"{os.path.abspath(base).rstrip('/') if base else ''}/leapray-{os.getuid()}"


def _too_long(path: str) -> str | None:
    if not path.isascii():
        return "has a name that is not ASCII"
    length = len(path) + len(SOCKET)
    return f"would give sockets paths of {length} bytes, at most {_LONGEST_SOCKET}" if length > _LONGEST_SOCKET else None


def _unusable(path: str, *, sockets: bool = False) -> str | None:
    """Why a folder, which is made if need be, is not the user's own or takes no files; None if it does."""
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
        found = os.lstat(path)
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            return f"holds {os.path.basename(path)}, which is not a directory of yours"
        if stat.S_IMODE(found.st_mode) != 0o700:
            os.chmod(path, 0o700)
        with tempfile.TemporaryFile(dir=path) as probe:
            os.posix_fallocate(probe.fileno(), 0, _LEAST_ROOM)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return f"has less than {_LEAST_ROOM >> 20} MB free"
        # a limit of the size of files is an obstacle of its own
        if error.errno != errno.EFBIG:
            return f"cannot be written ({error.strerror})"
    return _no_sockets(path) if sockets else None


def _no_sockets(path: str) -> str | None:
    name = f"{path}/probe-{os.getpid()}"
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.bind(name)
    except OSError as error:
        return f"takes no sockets ({error.strerror or error})"
    finally:
        with suppress(OSError):
            os.unlink(name)
    return None


def _no_loopback() -> str | None:
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), _CONNECT_SECONDS).close()
    except OSError as error:
        return error.strerror or str(error)
    return None


def _limits() -> Iterator[str]:
    import resource

    # Ray itself raises the limit of open files as far as it may
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if files != resource.RLIM_INFINITY and files < LEAST_FILES:
        yield f"{files} open files to a process, and Ray needs at least {LEAST_FILES}; set `ulimit -n 65536`"
    store = store_bytes(memory()[1], shared_free())
    size = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if size != resource.RLIM_INFINITY and size < store:
        yield (
            f"files may have {size / 1e9:.2g} GB here, and Ray's object store is a file of {store / 1e9:.2g} GB; set `ulimit -f unlimited`"
        )
    space = resource.getrlimit(resource.RLIMIT_AS)[0]
    if space != resource.RLIM_INFINITY and space < store + _CODE_SPACE:
        wanted = (store + _CODE_SPACE) / 1e9
        yield (
            f"a process may have {space / 1e9:.2g} GB of address space, and Ray's map their object store and need at least "
            f"{wanted:.2g} GB; set `ulimit -v unlimited`"
        )
    most = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    # the superuser is not held to it
    if os.getuid() and most < 1 << 16 and most != resource.RLIM_INFINITY and (free := most - _threads_of_user()) < _LEAST_THREADS:
        yield f"{max(free, 0)} more threads of {most} to this user, and Ray starts with about {_LEAST_THREADS}; set a larger `ulimit -u`"
    if (limit := _limit_and_use(_TASKS)) and (free := limit[0] - limit[1]) < _LEAST_THREADS:
        yield (
            f"{max(free, 0)} more threads of {limit[0]} to this container, and Ray starts with about {_LEAST_THREADS}; "
            f"start the container with a larger --pids-limit"
        )


def _threads_of_user() -> int:
    """Threads of all processes of this user."""
    count = 0
    for name in os.listdir("/proc") if os.path.isdir("/proc") else ():
        with suppress(OSError, ValueError):
            if name.isdigit() and os.stat(f"/proc/{name}").st_uid == os.getuid():
                count += len(os.listdir(f"/proc/{name}/task"))
    return count


def shared_free() -> int:
    """Bytes that are free in /dev/shm; 0 where there is none."""
    with suppress(OSError):
        found = os.statvfs(_SHARED)
        return found.f_bavail * found.f_frsize
    return 0


def memory() -> tuple[int, int]:
    """Bytes of memory, and those that are not taken; of the container where it has a limit."""
    page = os.sysconf("SC_PAGE_SIZE")
    total = page * os.sysconf("SC_PHYS_PAGES")
    available = total
    with suppress(OSError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), total)
    # a cgroup without a limit says max, or a number beyond all memory
    if (found := _limit_and_use(_CGROUPS)) and found[0] < total:
        return found[0], min(available, max(found[0] - found[1], 0))
    return total, available


def _limit_and_use(cgroups: tuple[tuple[str, str], ...]) -> tuple[int, int] | None:
    for names in cgroups:
        with suppress(OSError, ValueError):
            limit, use = (int(Path(name).read_text()) for name in names)
            return limit, use
    return None
