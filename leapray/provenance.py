"""What runs, and where: versions, revision, machine or cluster, recipe (Ray). It imports nothing heavy to tell of it."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pydantic import BaseModel

import leapray
from leapray.cluster import capacity

_GIT_SECONDS = 10.0
_LETTERS = 10
"""Of a revision, in a line."""
_SOURCE = "source-"


def versions() -> dict[str, str]:
    """Of leapray, Python, torch and Ray, as far as they are installed as packages."""
    found = {"leapray": leapray.__version__, "python": platform.python_version()}
    for name in ("torch", "ray"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def source_digest() -> str:
    """Short digest of leapray's source files and their names: a copy that travels with a job has no other mark of its own."""
    package, content = Path(leapray.__file__).parent, hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        content.update(f"{path.relative_to(package).as_posix()}\n".encode() + path.read_bytes())
    return content.hexdigest()[:8]


def revision() -> str:
    """Git revision of leapray's checkout, with ``-dirty`` when it has changes; where there is none, ``source-`` and the files' digest."""
    return _git_revision() or f"{_SOURCE}{source_digest()}"


def _git_revision() -> str | None:
    checkout = Path(leapray.__file__).resolve().parent.parent
    if not (checkout / ".git").exists():
        return None
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=_GIT_SECONDS).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def digest(*settings: BaseModel) -> str:
    """Short hash of the values of recipes, defaults filled in."""
    values = [part.model_dump(mode="json") for part in settings]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def line(where: str, what: str = "") -> str:
    """All of it in a line. ``where`` is what :func:`place` tells, ``what`` names the recipe."""
    known = versions()
    letters, dirty, _ = revision().partition("-dirty")
    ours = f"leapray {known.pop('leapray')} ({letters if letters.startswith(_SOURCE) else letters[:_LETTERS]}{dirty})"
    others = (f"{name.capitalize() if name != 'torch' else name} {number}" for name, number in known.items())
    return f"{', '.join([ours, *others])}, on {where}" + (f"; {what}" if what else "")


@contextmanager
def place(modules: Iterable[str] = ()) -> Iterator[str]:
    """Where things will run during the block: this machine, or the cluster that RAY_ADDRESS names, which is joined to ask it.

    ``modules`` as :func:`leapray.cluster.session.connected` has them.
    Raises UserError for a cluster that cannot be joined.
    """
    if not capacity.joins():
        yield f"this machine ({_counted(os.cpu_count() or 1, len(list(Path('/dev').glob('nvidia[0-9]*'))))})"
        return
    from leapray.cluster import session

    with session.connected(modules):
        yield _joined()


def _joined() -> str:
    """The joined cluster, by the address of its head, which holds no secret as RAY_ADDRESS might."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus, gpus = (sum(have.get(kind, 0) for have in nodes) for kind in ("CPU", "GPU"))
    size = f"{len(nodes)} node{'s' * (len(nodes) != 1)}, {_counted(cpus, gpus)}"
    return f"the cluster at {ray.get_runtime_context().gcs_address} ({size})"


def _counted(cpus: float, gpus: float) -> str:
    return f"{cpus:g} CPU{'s' * (cpus != 1)}" + (f", {gpus:g} GPU{'s' * (gpus != 1)}" if gpus else "")
