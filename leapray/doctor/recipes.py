"""What a recipe would use of what is there. Pure functions of the recipe and the facts."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

from leapray.climsim.schema import INPUTS, LEVELS, TARGETS
from leapray.cluster.capacity import MINIMUM_LOCAL_CPUS, Capacity, has_labels, has_resources, lacks_labels, lacks_resources, plan_trainings
from leapray.data.fetch import in_words
from leapray.data.findings import Finding
from leapray.data.flat.layout import ROW_GROUP_ROWS
from leapray.doctor.facts import Cluster, Gpu, Machine, Visit
from leapray.doctor.judging import note, ok, store_wanted, wrong
from leapray.doctor.places import named_places
from leapray.errors import UserError
from leapray.recipe import Recipe, Resources

EXTRAS = {"gs": "gcsfs", "hf": "huggingface_hub", "mlflow": "mlflow", "optuna": "optuna"}
"""The module that each extra brings."""
_SCHEMES = {"gs": "gs", "gcs": "gs", "hf": "hf"}
_SHUFFLE_COPIES = 3
"""Of a task's rows, which the shuffle holds at most."""
_PREFETCHED = 2
"""Blocks of flat rows that wait for each worker."""
_KEY_BYTES, _FLOAT, _DOUBLE = 8, 4, 8
_NATIVE_BF16, _NATIVE_FP16 = 8.0, 7.0
"""Compute capabilities from which a GPU has units for them."""
_CROWDED = 0.8


def judge_recipe(
    recipe: Recipe, machine: Machine, visits: Iterable[Visit], installed: Collection[str], cluster: Cluster | None = None
) -> Iterator[Finding]:
    """What a recipe would use of a machine, or of the cluster that it joined; ``installed`` are the modules of extras that are there."""
    yield from _extras(recipe, installed)
    lacking = list(_nodes(recipe.resources, cluster))
    yield from lacking or [_plan(recipe, machine, cluster)]
    if recipe.resources.use_gpu:
        yield from _precision(recipe, cluster, machine)
    elif recipe.training.precision == "fp16":
        yield wrong("training.precision fp16 needs a GPU; set resources.use_gpu=true, or training.precision to bf16 or float32")
    yield from _memory(recipe, machine, cluster)
    yield from _disk(recipe, list(visits))


def row_bytes(recipe: Recipe) -> int:
    """Of a row as it is scaled: float32 inputs with the engineered features, targets, and its key."""
    return _FLOAT * (INPUTS.width + LEVELS * len(recipe.data.features) + TARGETS.width) + _KEY_BYTES


def _extras(recipe: Recipe, installed: Collection[str]) -> Iterator[Finding]:
    wanted = {_SCHEMES[scheme]: place.key for place in named_places(recipe) if (scheme := place.url.partition("://")[0]) in _SCHEMES}
    if "mlflow" in recipe.training.trackers:
        wanted["mlflow"] = "training.trackers"
    if recipe.sweep is not None and recipe.sweep.search == "optuna":
        wanted["optuna"] = "sweep.search"
    for extra, key in wanted.items():
        if EXTRAS[extra] in installed:
            yield ok(f"{key} wants the extra {extra}, which is there")
        else:
            yield wrong(f"{key} wants the extra {extra}, which is not installed; pip install 'leapray[{extra}]'")


def _nodes(resources: Resources, cluster: Cluster | None) -> Iterator[Finding]:
    """The nodes that a recipe asks for by what they were started with; one of a cluster that grows may still come."""
    if cluster is not None and cluster.grows:
        return
    nodes = () if cluster is None else cluster.nodes
    # Ray finds a machine's accelerators by itself
    named = {name: amount for name, amount in resources.worker_resources.items() if cluster or not name.startswith("accelerator_type:")}
    elsewhere = "; join the cluster that has one with RAY_ADDRESS, or leave the key out" if cluster is None else ""
    if named and not any(has_resources(node.resources, named) for node in nodes):
        yield wrong(lacks_resources(named) + elsewhere)
    if resources.data_nodes and not any(has_labels(node.labels, resources.data_nodes) for node in nodes):
        yield wrong(lacks_labels(resources.data_nodes) + elsewhere)


def _plan(recipe: Recipe, machine: Machine, cluster: Cluster | None) -> Finding:
    resources = recipe.resources
    if cluster is None:
        here = (max(machine.cores, MINIMUM_LOCAL_CPUS), len(machine.gpus) if machine.torch_gpus else 0)
        capacity = Capacity("this machine", [here], machine.cores)
    else:
        nodes = [(node.cpus, node.gpus) for node in cluster.nodes if has_resources(node.resources, resources.worker_resources)]
        capacity = Capacity("the cluster", nodes, sum(cpus for cpus, _ in nodes), cluster.grows)
    try:
        # tasks that have nodes of their own take nothing from those that train
        plan = plan_trainings(capacity, resources, flat=recipe.data.stream_from == "flat" and not resources.data_nodes)
    except UserError as error:
        fewer = "set resources.workers or resources.cpus_per_worker to less"
        without = ", or resources.use_gpu=false to train on CPUs" if resources.use_gpu else ""
        return wrong(f"{error}; {fewer}{without}, or take a larger {'machine' if cluster is None else 'cluster'}")
    return ok(f"{recipe.name}: {plan.words}")


def _precision(recipe: Recipe, cluster: Cluster | None, machine: Machine) -> Iterator[Finding]:
    least = {"bf16": _NATIVE_BF16, "fp16": _NATIVE_FP16}.get(recipe.training.precision)
    machines = [machine] if cluster is None else [node.machine for node in cluster.nodes if node.machine is not None]
    gpus: set[Gpu] = {gpu for found in machines for gpu in found.gpus if gpu.capability}
    if least is None or not gpus:
        return
    slow = sorted({gpu.name for gpu in gpus if gpu.capability < least})
    if slow:
        other = "fp16 or float32" if recipe.training.precision == "bf16" else "float32"
        yield note(
            f"training.precision {recipe.training.precision} is slow on {', '.join(slow)}, which has no units for it; set it to {other}"
        )
    else:
        yield ok(f"training.precision {recipe.training.precision}: the GPUs have units for it")


def _memory(recipe: Recipe, machine: Machine, cluster: Cluster | None) -> Iterator[Finding]:
    """What a shuffle holds in its tasks, and flat rows in the object store, on the smallest node."""
    width = row_bytes(recipe)
    nodes = [(machine.name, machine.cores, machine.available, store_wanted(machine))]
    if cluster is not None:
        nodes = [(node.name, int(node.cpus), int(node.memory), int(node.object_store)) for node in cluster.nodes if node.cpus >= 1]
    if not nodes:
        return
    if recipe.data.stream_from == "shards":
        task = _SHUFFLE_COPIES * recipe.data.shuffle_rows * width
        name, tasks, have, _ = min(nodes, key=lambda node: node[2] / max(node[1], 1))
        told = f"preparing holds up to {tasks} tasks x {in_words(task)} = {in_words(tasks * task)} of memory on {name}, of {in_words(have)}"
        yield ok(told) if tasks * task <= _CROWDED * have else note(f"{told}; set data.shuffle_rows lower")
        return
    block = ROW_GROUP_ROWS * width
    readers = max(recipe.resources.workers, 1)
    name, tasks, _, store = min(nodes, key=lambda node: node[3])
    blocks = tasks + _PREFETCHED * readers
    told = f"flat rows take about {blocks} blocks x {in_words(block)} = {in_words(blocks * block)} of the object store, and {name} has"
    if blocks * block <= store:
        yield ok(f"{told} {in_words(store)}")
    else:
        yield note(f"{told} {in_words(store)}, so that Ray spills to disk; prepare shards (data.stream_from=shards), or enlarge the store")


def _disk(recipe: Recipe, visits: Sequence[Visit]) -> Iterator[Finding]:
    """Shards, which are float32 of what flat files hold in float64, against the disk of ``data.prepared``."""
    if recipe.data.stream_from != "shards":
        return
    held = {visit.place.key: visit.bytes for visit in visits if visit.trouble is None}
    parts = [held.get(f"data.sources.{name}.path", 0) * source.fraction for name, source in recipe.data.sources.items()]
    shards = int(sum(parts) * row_bytes(recipe) / (_DOUBLE * (INPUTS.width + TARGETS.width)))
    prepared = next((visit for visit in visits if visit.place.key == "data.prepared" and visit.trouble is None), None)
    if not shards or prepared is None:
        return
    told = f"shards take at most about {in_words(shards)} of data.prepared, which holds {in_words(prepared.bytes)}"
    disk = prepared.disk
    # the scattered files of the shuffle lie beside the shards until they are gathered
    if disk is None or disk.free + prepared.bytes >= 2 * shards:
        yield ok(told)
    elif disk.free + prepared.bytes >= shards:
        yield note(f"{told}, and {in_words(disk.free)} are free: as much again is wanted while rows are shuffled; make room there")
    else:
        yield wrong(f"{told}, and only {in_words(disk.free)} are free; make room there, or set data.prepared to another place")
