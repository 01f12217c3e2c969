"""A plan put together: what is known of recipe, data and machine, through the model, to figures and sentences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from leapray import storage
from leapray.data.fitting import Fitting
from leapray.errors import UserError
from leapray.models.registry import SOLVED
from leapray.planning.known import find_rates
from leapray.planning.memory import worker_memory
from leapray.planning.model import COMPUTE, DATA, GRADIENTS, STORAGE, Cluster, Speeds, Step, Work, exchanged_bytes, step_of
from leapray.planning.network import PASSES, Cost, cost_of
from leapray.planning.rates import Rate
from leapray.planning.request import Request, cluster_of, gpu_cluster
from leapray.planning.rows import FLAT_BYTES, RAW_BYTES, Epoch, Rows, epoch_of, find_rows, shard_bytes
from leapray.recipe import Recipe
from leapray.training.choices import check_choices

Cell = tuple[float, str] | str
"""A number and its unit, or words."""
Table = Mapping[str, Mapping[str, Cell]]
"""Rows by name, each of cells by the names of the columns."""
RATES = "rates"


@dataclass(frozen=True)
class Plan:
    """What a training would take. ``tables`` and ``sentences`` are all that is shown, and all that ``--json`` writes."""

    recipe: Recipe
    request: Request
    cluster: Cluster
    work: Work
    speeds: Speeds
    rates: Mapping[str, Rate]
    cost: Cost
    rows: Rows
    epoch: Epoch

    @cached_property
    def step(self) -> Step:
        return step_of(self.work, self.cluster, self.speeds)

    @property
    def epoch_s(self) -> float:
        return self.epoch.steps * self.step.seconds

    @property
    def validation_s(self) -> float:
        """One validation: the way forward alone, as fast as the rows can be had."""
        workers, speeds = self.cluster.workers, self.speeds
        each = [1 / (PASSES * speeds.train), 1 / (speeds.read * self.cluster.data_cpus)]
        return self.rows.validation / workers * (max(each) if self.cluster.gpu else sum(each))

    @property
    def training_s(self) -> float:
        training = self.recipe.training
        return training.epochs * (self.epoch_s + training.validations * self.validation_s)

    def _read_cpus(self, form: str) -> float:
        """CPUs that make rows of a form ready as fast as one worker could train them."""
        step = self.step
        return self.work.batch_rows / self.cluster.workers / (step.compute + step.gradients) / self.rates[f"read {form}"].value

    @cached_property
    def tables(self) -> Mapping[str, Table]:
        """Everything in figures, by the titles of the tables."""
        return {
            "sources": self._sources,
            "a step": self._parts,
            "expected": self._expected,
            "needed": self._needed,
            "before": self._before,
            "memory of a worker": self._memory,
            **({"sizes": self._sizes} if self.cluster.gpu else {}),
            RATES: {name: {"value": (rate.value, rate.unit), "is": rate.origin, "from": rate.source} for name, rate in self.rates.items()},
        }

    @property
    def _sources(self) -> Table:
        """By source, so that long numbers have room."""
        held, features = self.rows.sources, len(self.recipe.data.features)
        figures: dict[str, Mapping[str, Cell]] = {
            "training rows": {name: (own.rows.get("train", 0), "rows") for name, own in held.items()},
            "of an epoch": {name: (self.epoch.rows.get(name, 0), "rows") for name in held},
            "of all splits": {name: (own.total, "rows") for name, own in held.items()},
        }
        for form, size in {"netCDF": RAW_BYTES, "flat parquet": FLAT_BYTES}.items():
            figures[f"these in {form}"] = {name: (own.total * size, "bytes") for name, own in held.items()}
        shards: Mapping[str, Cell] = {name: (own.shards or own.total * shard_bytes(features), "bytes") for name, own in held.items()}
        return figures | {"these in shards": shards}

    @property
    def _parts(self) -> Table:
        step, workers = self.step, self.cluster.workers
        seconds = {
            "network and optimizer": step.compute,
            "gradients, beyond what the way back hides": step.gradients,
            "gradients, all of their exchange": step.exchange,
            "rows made ready by CPUs": step.data,
            "rows from storage": step.storage,
            "network card": step.network,
            "the step": step.seconds,
        }
        rows: dict[str, Mapping[str, Cell]] = {
            "rows, all workers": {"": (self.work.batch_rows, "rows")},
            "rows, each worker": {"": (self.work.batch_rows / workers, "rows")},
        }
        return rows | {name: {"": (value, "s")} for name, value in seconds.items()}

    @property
    def _expected(self) -> Table:
        cluster = self.cluster
        figures: dict[str, Cell] = {
            "workers": (cluster.workers, ""),
            "nodes": (cluster.nodes, ""),
            "rows/s, all workers": (self.step.rows_per_s, "rows/s"),
            "steps of an epoch": (self.epoch.steps, ""),
            "rows of an epoch": (sum(self.epoch.rows.values()), "rows"),
            "epochs at the most": (self.recipe.training.epochs, ""),
            "epoch": (self.epoch_s, "s"),
            "validation": (self.validation_s, "s"),
            "training, all epochs": (self.training_s, "s"),
            ("GPU" if cluster.gpu else "worker") + "-hours": (cluster.workers * self.training_s / 3600, "h"),
            "first bottleneck": self.step.bottleneck,
        }
        return {name: {"": cell} for name, cell in figures.items()}

    @property
    def _needed(self) -> Table:
        cluster, step = self.cluster, self.step
        # of workers that never wait for rows
        fed_s = step.compute + step.gradients + (0.0 if cluster.gpu else step.data)
        what, extra = ("CPUs per GPU", 1) if cluster.gpu else ("CPUs for reading, a worker", 0)
        read = self.work.batch_rows * self.work.row_bytes / fed_s
        node = read * cluster.together / cluster.workers
        exchanged = exchanged_bytes(self.work.parameters, cluster.workers) / fed_s if cluster.nodes > 1 else 0.0
        return {
            f"{what}, shards": {"": (self._read_cpus("shards") + extra, "CPUs")},
            f"{what}, flat parquet": {"": (self._read_cpus("flat") + extra, "CPUs")},
            "storage, all nodes": {"": (read, "bytes/s")},
            "storage, each node": {"": (node, "bytes/s")},
            "network card of a node": {"": ((node if cluster.remote else 0.0) + exchanged, "bytes/s")},
        }

    @property
    def _before(self) -> Table:
        rows = sum(held.total for held in self.rows.sources.values())
        return {stage: {"": (rows / self.rates[stage].value, "s of CPU")} for stage in ("convert", "prepare")}

    @property
    def _memory(self) -> Table:
        memory = worker_memory(self.recipe, self.cost.parameters, self.cluster.workers)
        return {name: {"": (size, "bytes")} for name, size in memory.items()}

    @property
    def _sizes(self) -> Table:
        return {
            f"{gpus} GPU{'' if gpus == 1 else 's'}": {
                "speed": (step.rows_per_s, "rows/s"),
                "epoch": (self.epoch.steps * step.seconds, "s"),
                "GPU-hours": (gpus * self.epoch.steps * step.seconds / 3600, "h"),
                "first bottleneck": step.bottleneck,
            }
            for gpus, step in self._other_steps.items()
        }

    @cached_property
    def _other_steps(self) -> Mapping[int, Step]:
        """The same steps by one GPU and by a quarter to four times as many, where they can share them."""
        own = self.cluster.workers
        sizes = (size for size in sorted({1, own // 4, own // 2, own, own * 2, own * 4}) if size)
        return {
            size: step_of(self.work, gpu_cluster(self.request, not storage.is_local(self.recipe.data.prepared), size), self.speeds)
            for size in sizes
            if self._divides(size)
        }

    def _divides(self, workers: int) -> bool:
        """Whether so many workers can share a step, as a recipe is checked for."""
        resources = self.recipe.resources.model_copy(update={"workers": workers})
        lanes = self.recipe.model_copy(update={"resources": resources}).lanes
        return not (lanes % workers or self.recipe.training.batch_size % lanes)

    @property
    def sentences(self) -> list[str]:
        """The bottleneck, what lifts it, what the rows were counted by, and how many of them an epoch leaves out."""
        step, lifted = self.step, self.step.lifted
        told = f"first bottleneck: {step.bottleneck}; {self._remedy}"
        if lifted.seconds > 0:
            told += f"; without it {lifted.rows_per_s:,.0f} rows/s, then {lifted.bottleneck}"
        sentences = [told, *self.rows.found, *filter(None, [self.epoch.remainder])]
        every = [name for name, held in self.rows.sources.items() if held.assumed and self.recipe.data.sources[name].stride == 1]
        if every:
            sets = " ".join(f"--set data.sources.{name}.stride=7" for name in every)
            sentences.append(f"they are every step of {', '.join(every)}; of each seventh, which convert --stride 7 leaves: {sets}")
        if self.cluster.gpu:
            others, own = self._other_steps, self.cluster.workers
            best = max(others, key=lambda size: (others[size].rows_per_s, -size))
            if best < own:
                sentences.append(f"{best} of the {own} GPUs alone would train more rows/s: gradients cost more than the others bring")
        if self.rates["train"].origin == "assumed":
            sentences.append("the rate of training is assumed; --measure takes it of this machine, and --rate one that you know")
        return sentences

    @property
    def _remedy(self) -> str:
        step, cluster, work = self.step, self.cluster, self.work
        if step.bottleneck == COMPUTE:
            if cluster.gpu and work.batch_rows / cluster.workers / self.speeds.train < work.floor_s:
                return (
                    f"{work.batch_rows / cluster.workers:,.0f} rows a GPU are over before its kernels are launched, "
                    "which a larger training.batch_size lifts and more GPUs do not"
                )
            return " and ".join(self._faster)
        if step.bottleneck == GRADIENTS:
            far = cluster.nodes > 1 and self.speeds.network < self.speeds.link
            return (
                f"a larger training.batch_size lifts it, or {'a faster network between nodes' if far else 'a faster link between workers'}"
            )
        if step.bottleneck == DATA:
            flat = self.recipe.data.stream_from == "flat"
            wanted = self._read_cpus(self.recipe.data.stream_from) + cluster.gpu
            return f"a worker has {cluster.cpus:.3g} CPUs, and {wanted:.3g} would keep it fed" + (
                "; data.stream_from shards needs fewer" if flat else ""
            )
        passes = step.compute + step.gradients
        needed = (step.storage if step.bottleneck == STORAGE else step.network) / passes if passes else 0.0
        what = "storage" if step.bottleneck == STORAGE else "network cards"
        shards = ", or data.stream_from shards, whose rows are half as long" if self.recipe.data.stream_from == "flat" else ""
        return f"{what} {needed:.3g} times as fast would keep the workers fed, or shards on the nodes' own disks{shards}"

    @property
    def _faster(self) -> list[str]:
        """What lifts arithmetic; whether more GPUs do is told by the sizes that the plan has."""
        if not self.cluster.gpu:
            return ["more workers lift it"]
        more = [step.rows_per_s for size, step in self._other_steps.items() if size > self.cluster.workers]
        if not more:
            told = "more GPUs would lift it, had training.batch_size and its lanes parts for them"
        elif max(more) > self.step.rows_per_s:
            told = "more workers lift it"
        else:
            told = "a larger training.batch_size lifts it, and more GPUs do not, for the exchange of gradients costs more than they bring"
        return [told, "training.precision bf16 does"] if self.recipe.training.precision == "float32" else [told]

    def to_dict(self) -> dict[str, Any]:
        """What is shown, in plain values: each cell a text, or its value and unit."""
        return {
            "recipe": self.recipe.name,
            "tables": {
                title: {
                    row: {column: cell if isinstance(cell, str) else {"value": cell[0], "unit": cell[1]} for column, cell in cells.items()}
                    for row, cells in table.items()
                }
                for title, table in self.tables.items()
            },
            "sentences": self.sentences,
        }


def make_plan(recipe: Recipe, request: Request) -> Plan:
    """The plan of a recipe that :func:`leapray.planning.request.planned_recipe` gave.

    Raises UserError for a wrong choice in the recipe, no training rows, and a cluster that cannot hold its workers.
    """
    check_choices(recipe)
    if recipe.network.name in SOLVED:
        raise UserError(f"network {recipe.network.name} is solved for in one pass over the training rows; there are no steps to plan")
    Fitting(recipe.data.scaling, recipe.data.features)
    rows = find_rows(recipe.data)
    epoch = epoch_of(recipe, rows.sources)
    cost = cost_of(recipe)
    cluster, threads = cluster_of(recipe, request, remote=not storage.is_local(recipe.data.prepared))
    training, form = recipe.training, recipe.data.stream_from
    measured: Mapping[str, Rate] = {}
    if request.measure:
        # it imports Ray
        from leapray.planning.measure import measure

        measured = measure(recipe, request, training.batch_size // cluster.workers, threads, rows.prepared)
    found = find_rates(recipe, request, cluster, cost, measured)
    row_bytes = shard_bytes(len(recipe.data.features)) if form == "shards" else FLAT_BYTES
    floor = cost.serial * training.accumulate * found["launch"].value if "launch" in found else 0.0
    work = Work(training.batch_size, cost.parameters, row_bytes, training.accumulate, floor)
    speeds = Speeds(*(found[name].value for name in ("train", f"read {form}", "link", "network", "storage")))
    return Plan(recipe, request, cluster, work, speeds, found, cost, rows, epoch)
