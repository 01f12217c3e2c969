"""The arithmetic of a training step on a cluster: how long each part of it takes, and which one holds the others back.

Everything here is a pure function of numbers. Units are seconds, bytes, rows and bytes per second unless a name says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

GRADIENT_BYTES = 4
"""Of a parameter: weights and gradients are float32 whatever the precision, since only the passes are cast."""
BUCKET_BYTES = 25 << 20
"""DistributedDataParallel exchanges gradients in buckets of this size; the last one can only begin when the way back has ended."""
BACKWARD = 2 / 3
"""Of the arithmetic of a step: for its inputs and for its weights, after as much for the way forward."""

COMPUTE, GRADIENTS, DATA, STORAGE, NETWORK = "compute", "gradients", "data CPUs", "storage", "network"
PARTS = (COMPUTE, GRADIENTS, DATA, STORAGE, NETWORK)


@dataclass(frozen=True)
class Work:
    """What a step is made of, whoever does it."""

    batch_rows: int
    """Of a step, over all workers."""
    parameters: int
    """That take a gradient."""
    row_bytes: float
    """That are read from storage for a row."""
    accumulate: int = 1
    floor_s: float = 0.0
    """What a worker's passes take even for one row: kernels that wait for each other."""


@dataclass(frozen=True)
class Cluster:
    """Workers, and the nodes that they share."""

    workers: int
    gpu: bool
    workers_per_node: int
    cpus_per_node: float
    remote: bool = True
    """Rows come over the network, not from the node's own disk."""

    @property
    def nodes(self) -> int:
        return -(-self.workers // self.workers_per_node)

    @property
    def together(self) -> int:
        """Workers on the fullest node."""
        return min(self.workers, self.workers_per_node)

    @property
    def cpus(self) -> float:
        """A worker's share of its node's CPUs."""
        return self.cpus_per_node / self.together

    @property
    def data_cpus(self) -> float:
        """Those of them that may read rows: beside a GPU all but the one that launches its kernels."""
        return self.cpus - 1 if self.gpu else self.cpus


@dataclass(frozen=True)
class Speeds:
    """What the hardware does, per second."""

    train: float
    """Rows that one worker trains."""
    read: float
    """Rows that one CPU makes ready, from the form that is streamed."""
    link: float
    """Bytes between two workers of one node, each way."""
    network: float
    """Bytes through a node's network card, each way."""
    storage: float
    """Bytes that the storage gives to all nodes together."""


@dataclass(frozen=True)
class Step:
    """How long one step's parts take, each as if it had the machine to itself."""

    gpu: bool
    batch_rows: int
    compute: float
    exchange: float
    """All of the gradients' exchange."""
    backward: float
    """The part of ``compute`` beside which gradients are exchanged."""
    last_bucket: float
    """Of the exchange, what can never be hidden."""
    data: float
    storage: float
    card_rows: float
    card_gradients: float
    """Of the network card's time, that of rows and that of gradients."""

    @property
    def network(self) -> float:
        return self.card_rows + self.card_gradients

    @property
    def gradients(self) -> float:
        """The exchange as far as the way back does not hide it."""
        return max(self.last_bucket, self.exchange - self.backward)

    @cached_property
    def _limits(self) -> dict[tuple[str, ...], float]:
        """What runs beside what: the longest decides. A GPU computes while CPUs read; where the CPUs compute, they cannot read too."""
        passes = {COMPUTE: self.compute, GRADIENTS: self.gradients}
        chains = [passes, {DATA: self.data}] if self.gpu else [passes | {DATA: self.data}]
        chains += [{STORAGE: self.storage}, {NETWORK: self.network}]
        return {tuple(sorted(chain, key=lambda name: -chain[name])): sum(chain.values()) for chain in chains}

    @property
    def seconds(self) -> float:
        return max(self._limits.values())

    @property
    def rows_per_s(self) -> float:
        """Of all workers."""
        return self.batch_rows / self.seconds

    @property
    def bottleneck(self) -> str:
        """The part that takes longest of those that decide."""
        return max(self._limits, key=lambda chain: self._limits[chain])[0]

    @property
    def lifted(self) -> Step:
        """The step if its bottleneck took no time."""
        left = {name: (0.0 if name == self.bottleneck else 1.0) for name in PARTS}
        return replace(
            self,
            compute=left[COMPUTE] * self.compute,
            backward=left[COMPUTE] * self.backward,
            exchange=left[GRADIENTS] * self.exchange,
            last_bucket=left[GRADIENTS] * self.last_bucket,
            data=left[DATA] * self.data,
            storage=left[STORAGE] * self.storage,
            card_rows=left[NETWORK] * self.card_rows,
            card_gradients=left[NETWORK] * left[GRADIENTS] * self.card_gradients,
        )


def exchanged_bytes(parameters: int, workers: int) -> float:
    """Bytes that each worker sends, and receives, to sum gradients in a ring: 2 (N - 1) / N of them all (Patarasuk and Yuan 2009)."""
    return 2 * (workers - 1) / workers * parameters * GRADIENT_BYTES


def step_of(work: Work, cluster: Cluster, speeds: Speeds) -> Step:
    """The parts of a step, in seconds (docs/planning.md)."""
    rows = work.batch_rows / cluster.workers
    # processes of one thread each, more than there are CPUs, take turns
    crowd = 1.0 if cluster.gpu else max(1.0, 1 / cluster.cpus)
    compute = max(rows / speeds.train, work.floor_s) * crowd
    sent = exchanged_bytes(work.parameters, cluster.workers)
    exchange = sent / (speeds.link if cluster.nodes == 1 else min(speeds.link, speeds.network))
    gradients = max(work.parameters * GRADIENT_BYTES, 1)
    return Step(
        gpu=cluster.gpu,
        batch_rows=work.batch_rows,
        compute=compute,
        exchange=exchange,
        backward=BACKWARD * compute / work.accumulate,
        last_bucket=exchange * min(1.0, BUCKET_BYTES / gradients),
        data=rows / (speeds.read * cluster.data_cpus),
        storage=work.batch_rows * work.row_bytes / speeds.storage,
        card_rows=cluster.together * rows * work.row_bytes / speeds.network if cluster.remote else 0.0,
        card_gradients=sent / speeds.network if cluster.nodes > 1 else 0.0,
    )
