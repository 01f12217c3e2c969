"""The records of a training as metrics of Ray, which the agent of each node serves to Prometheus (Ray).

Ray puts ``ray_`` before the names. Every metric has the tags ``run``, the URL of the run, and ``rank``.
"""

from __future__ import annotations

from threading import Event, Lock, Thread
from types import TracebackType

from ray.util.metrics import Counter, Gauge

from leapray import storage
from leapray.training.loop import Record

_AGAIN_SECONDS = 5.0
"""Ray forgets a gauge that is not set for two of its reports, 20 s, and a long epoch has its records further apart."""
_OWN = {
    "leapray_data_wait_share": ("data_wait_share", "Part of the time of the last steps that waited for data, 0 to 1"),
    "leapray_cpus": ("cpus", "CPUs that the process kept busy in the last steps"),
    "leapray_memory_bytes": ("memory_bytes", "Memory that the process holds for itself"),
    "leapray_gpu_utilisation": ("gpu_use", "Part of the time of the last steps in which the GPU computed, 0 to 1"),
    "leapray_gpu_memory_bytes": ("gpu_memory_bytes", "The most that tensors took on the GPU in the last steps"),
}
"""Of every rank, by name: the record's key, and what it is."""
_COMMON = {
    "leapray_step": ("step", "Steps done"),
    "leapray_steps": ("steps", "Steps planned"),
    "leapray_loss": ("loss", "Mean training loss of the last steps"),
    "leapray_validation_loss": ("val_loss", "Loss of the last validation"),
    "leapray_validation_skill": ("skill", "Skill of the last validation, over the learned columns"),
    "leapray_validation_r2": ("r2", "R2 of the last validation, over the learned columns"),
}
"""Of the training, which rank 0 tells."""
_TAGS = ("run", "rank")


class Gauges:
    """The metrics of one rank, as a context: gauges show the last records until its end. Rows and their rate are this rank's share."""

    def __init__(self, run: str, rank: int, world: int) -> None:
        # Ray takes only ASCII
        tags = {"run": storage.ascii_url(run), "rank": str(rank)}
        self._shown = _OWN if rank else _OWN | _COMMON
        self._world = world
        described = {name: about for name, (_, about) in self._shown.items()} | {"leapray_rows_per_second": "Rows trained in a second"}
        self._gauges = {name: Gauge(name, about, _TAGS).set_default_tags(tags) for name, about in described.items()}
        self._rows = Counter("leapray_rows", "Rows trained", _TAGS).set_default_tags(tags)
        self._values: dict[str, float] = {}
        self._lock, self._ended = Lock(), Event()

    def add(self, record: Record) -> None:
        """Show a record."""
        values = {name: float(record[key]) for name, (key, _) in self._shown.items() if key in record}
        if record["event"] == "step":
            values["leapray_rows_per_second"] = record["rows_per_s"] / self._world
            self._rows.inc(round(record["rows_per_s"] * record["seconds"]) / self._world)
        with self._lock:
            self._values |= values
        self._set()

    def _set(self) -> None:
        with self._lock:
            for name, value in self._values.items():
                self._gauges[name].set(value)

    def _keep(self) -> None:
        while not self._ended.wait(_AGAIN_SECONDS):
            self._set()

    def __enter__(self) -> Gauges:
        Thread(target=self._keep, name="gauges", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
