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
from leapray.cluster import preflight
from leapray.doctor.facts import PACKAGES, Disk, Gpu, Machine
from leapray.errors import UserError
from leapray.provenance import source_digest

_SHARED = "/dev/shm"
_QUERY = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version,compute_cap", "--format=csv,noheader,nounits"]
_QUERY_SECONDS = 20.0
_UNLIMITED = 1 << 40


def machine(*, starts_ray: bool = False) -> Machine:
    """This machine; with ``starts_ray`` also what would keep Ray from being started on it. torch is imported only where there is a GPU.

    Raises UserError where no directory takes temporary files.
    """
    memory, available = preflight.memory()
    obstacles = tuple(preflight.obstacles()) if starts_ray else ()
    gpus = _gpus()
    torch_gpus, torch_cuda = _torch() if gpus else (0, None)
    return Machine(
        name=socket.gethostname(),
        versions=versions(),
        cores=os.cpu_count() or 1,
        memory=memory,
        available=available,
        shared=disk(_SHARED) if os.path.isdir(_SHARED) else None,
        temporary=disk(_temporary()),
        ray_temporary=disk(_ray_temporary()),
        obstacles=obstacles,
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


def _temporary() -> str:
    try:
        return tempfile.gettempdir()
    except FileNotFoundError as error:
        raise UserError("no directory takes temporary files; make room, or set TMPDIR to a directory that can be written") from error


def _ray_temporary() -> str:
    """Where a Ray that is started here puts its objects."""
    try:
        folder = preflight.ray_folder()
    except UserError:
        # an obstacle, which is told by itself
        return _temporary()
    return folder.spill or os.path.dirname(folder.path)


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
