"""What the doctor looks at, as it was found: one machine, the places of a recipe, the road to S3, a cluster.

These are measured in one place and judged in another, so that a judgement needs no machine to be tried on. No secret is among them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

PACKAGES = ("leapray", "torch", "ray", "pyarrow")


@dataclass(frozen=True)
class Disk:
    """A folder's file system, in bytes."""

    path: str
    total: int
    free: int


@dataclass(frozen=True)
class Gpu:
    """A GPU as its driver tells it: memory in bytes, compute capability such as 9.0, 0 where an old driver does not say."""

    name: str
    memory: int
    driver: str
    capability: float = 0.0


@dataclass(frozen=True)
class Machine:
    """One machine, seen from a process on it."""

    name: str
    versions: Mapping[str, str | None]
    """Of Python and ``PACKAGES``; None for one that is not there."""
    cores: int
    memory: int
    """Bytes, of the container where it has a limit."""
    available: int
    """Bytes of it that are not taken."""
    shared: Disk | None
    """``/dev/shm``, where Ray keeps its object store."""
    temporary: Disk
    """Where uploads wait."""
    ray_temporary: Disk
    """Where Ray spills objects and keeps its sockets and logs."""
    open_files: int
    """The most that a process may raise its limit to."""
    obstacles: tuple[str, ...] = ()
    """Why Ray could not be started here, with the remedy of each; none too where it was not asked."""
    gpus: tuple[Gpu, ...] = ()
    torch_gpus: int = 0
    """Of these, how many torch computes on."""
    torch_cuda: str | None = None
    """The CUDA that torch is built for; None for a build without, or where there is no GPU to look for."""


@dataclass(frozen=True)
class Place:
    """A place that a recipe names: its key, its URL, and whether it is written to."""

    key: str
    url: str
    writes: bool


@dataclass(frozen=True)
class Pairs:
    """netCDF pairs that lie where flat files are expected."""

    complete: int
    incomplete: str | None = None
    """How many steps lack one of their two files, with the first names; None where none does."""


@dataclass(frozen=True)
class Visit:
    """A place that was tried."""

    place: Place
    local: bool
    trouble: str | None = None
    """Why it cannot be used, with the URL."""
    bytes: int = 0
    """Of the files that lie there."""
    disk: Disk | None = None
    """Of a local place."""
    pairs: Pairs | None = None
    """Of a source of a recipe that holds netCDF files and no flat ones."""
    passed_over: tuple[str, ...] = ()
    """Names of the files of such a source that no verb reads."""


@dataclass(frozen=True)
class Road:
    """How S3 is reached: by which kind of credentials (None: there are none), where, and whether something listens there."""

    credentials: str | None
    region: str | None
    endpoint: str
    named: str | None
    """What names an endpoint other than AWS's own."""
    trouble: str | None = None
    """Why no connection comes about; None too where a proxy stands between."""


@dataclass(frozen=True)
class Node:
    """A node of the cluster: its resources, in bytes where they are memory, and what a task found on it."""

    name: str
    cpus: float
    gpus: float
    memory: float
    object_store: float
    resources: Mapping[str, float] = field(default_factory=dict)
    """Of Ray's names, those above and whatever it was started with."""
    labels: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str | None] | None = None
    """As in :class:`Machine`; None where no task answered."""
    silence: str | None = None
    """Why no task answered."""
    machine: Machine | None = None
    """None where leapray cannot be imported."""
    lacking: str | None = None
    """Why leapray cannot be imported."""
    visits: tuple[Visit, ...] = ()
    unseen: tuple[str, ...] = ()
    """Keys of the driver's local places that are others here."""


@dataclass(frozen=True)
class Cluster:
    """The cluster that was joined."""

    address: str
    nodes: tuple[Node, ...]
    free_cpus: float
    answers_strangers: bool
    """Whether it answers a client that has no token."""
    grows: bool = False
    """Whether nodes are added as they are asked for."""
