"""Measuring the machine that this process runs on."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import leapray
from leapray.doctor.facts import PACKAGES, Disk, Gpu, Machine
from leapray.provenance import source_digest

_SHARED = "/dev/shm"
_CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
"""The limit and the use of a container's memory: of version 2, and of version 1."""
_QUERY = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version,compute_cap", "--format=csv,noheader,nounits"]
_QUERY_SECONDS = 20.0
_UNLIMITED = 1 << 40


def machine() -> Machine:
    """This machine. torch is imported only where there is a GPU."""
    memory, available = _memory()
    gpus = _gpus()
    torch_gpus, torch_cuda = _torch() if gpus else (0, None)
    return Machine(
        name=socket.gethostname(),
        versions=versions(),
        cores=os.cpu_count() or 1,
        memory=memory,
        available=available,
        shared=disk(_SHARED) if os.path.isdir(_SHARED) else None,
        temporary=disk(tempfile.gettempdir()),
        ray_temporary=disk(_ray_temporary()),
        open_files=_open_files(),
        gpus=gpus,
        torch_gpus=torch_gpus,
        torch_cuda=torch_cuda,
    )


def versions() -> dict[str, str | None]:
    """Versions of Python and the packages that all processes must agree on; leapray's with a digest of its source files."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    # a working copy on a job's path is not installed, and may be another than its version says
    return found | {"leapray": f"{leapray.__version__} ({source_digest()})"}


def disk(path: str) -> Disk:
    """The file system that holds a folder, or would hold it."""
    found = Path(path)
    while not found.exists():
        found = found.parent
    use = shutil.disk_usage(found)
    return Disk(path, use.total, use.free)


def _ray_temporary() -> str:
    """Where a Ray that is started here puts its sessions."""
    return os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or tempfile.gettempdir()


def _memory() -> tuple[int, int]:
    """Bytes of memory, and those that are not taken."""
    page = os.sysconf("SC_PAGE_SIZE")
    total = page * os.sysconf("SC_PHYS_PAGES")
    available = total
    with suppress(OSError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), total)
    for limit, use in _CGROUPS:
        # a cgroup without a limit says max, or a number beyond all memory
        with suppress(OSError, ValueError):
            most, taken = (int(Path(name).read_text()) for name in (limit, use))
            if most < total:
                return most, min(available, max(most - taken, 0))
    return total, available


def _open_files() -> int:
    if sys.platform == "win32":
        return _UNLIMITED
    import resource

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return _UNLIMITED if hard == resource.RLIM_INFINITY else hard


def _gpus() -> tuple[Gpu, ...]:
    """Nvidia's GPUs as the driver tells them, whether this process may use them or not."""
    try:
        told = subprocess.run(_QUERY, capture_output=True, text=True, timeout=_QUERY_SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(_gpu(line) for line in told.splitlines() if line.count(",") == 3)


def _gpu(line: str) -> Gpu:
    name, memory, driver, capability = (part.strip() for part in line.split(","))
    with suppress(ValueError):
        return Gpu(name, int(memory) << 20, driver, float(capability))
    return Gpu(name, int(memory) << 20 if memory.isdigit() else 0, driver)


def _torch() -> tuple[int, str | None]:
    # it takes seconds to import
    import torch

    return torch.cuda.device_count(), torch.version.cuda
