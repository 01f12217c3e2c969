"""``leapray doctor``: what this machine or cluster has, what a recipe needs of it, and what is wrong, each with its remedy."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import leapray
from leapray.cluster import capacity, preflight, ray_compat, shadows
from leapray.console import scaled
from leapray.data.findings import Finding, Verdict
from leapray.data.row_bytes import flat_row_bytes, shard_row_bytes
from leapray.doctor_places import PREPARED, SOURCES, Visit, existing, is_prepared, judge_visits, named_places, note, ok, visit_all, wrong
from leapray.errors import UserError
from leapray.faults import shown
from leapray.provenance import source_digest
from leapray.recipe import Recipe

_QUERY_S = 20.0
"""Seconds for the driver of the GPUs."""
_QUERY = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
_LEAST_FREE, _LEAST_SHARE = 2 * 10**9, 0.05
"""Free bytes for temporary files, and the free share below which Ray puts no objects on a disk (``local_fs_capacity_threshold``)."""
_SHUFFLE_COPIES, _CROWDED = 3, 0.8
"""Copies of a task's rows that the shuffle holds, and the share of the memory that they may take."""


def examine(recipe: Recipe | None = None) -> Iterator[Finding]:
    """Look at this machine, at the cluster of ``RAY_ADDRESS`` if it is set, and at what a recipe needs of them.

    Every finding that is not good tells its remedy. A look that fails is a finding; nothing is raised.
    """
    visits: list[Visit] = []
    looks: dict[str, Callable[[], Iterable[Finding]]] = {"this machine": lambda: check_machine(recipe)}
    if not capacity.joins():
        looks["the start of Ray"] = check_start
    looks["the working directory"] = lambda: (wrong(shadows.sentence(path)) for path in shadows.shadows(os.getcwd()))
    if recipe:

        def places() -> Iterator[Finding]:
            visits.extend(visit_all(named_places(recipe)))
            yield from judge_visits(visits, prepared=is_prepared(recipe, visits))

        looks |= {"the places of the recipe": places, "the recipe": lambda: judge_recipe(recipe, visits)}
    if capacity.joins():

        def cluster() -> Iterator[Finding]:
            from leapray.doctor_nodes import judge_cluster

            yield from judge_cluster(recipe, visits)

        looks["the cluster"] = cluster
    for what, look in looks.items():
        try:
            yield from look()
        except UserError as error:
            yield wrong(str(error))
        except Exception as error:
            reason = shown(" ".join(str(error).split())[:200])
            yield wrong(f"{what} could not be checked ({type(error).__name__}: {reason}); please report this error")


def require_good(findings: Sequence[Finding]) -> str:
    """One line that counts findings. Raises UserError with the counts if any is wrong."""
    notes, bad = (sum(finding.verdict is verdict for finding in findings) for verdict in (Verdict.NOTE, Verdict.WRONG))
    if bad:
        raise UserError(f"{bad} of {len(findings)} findings are wrong, beside {notes} note{'s' * (notes != 1)}; each line has its remedy")
    return f"{len(findings)} findings: nothing is wrong, {notes} note{'s' * (notes != 1)}"


def versions() -> dict[str, str | None]:
    """Versions of what all processes must agree on; of leapray with a digest of its source files, since a copy may not be installed."""
    found: dict[str, str | None] = {"python": platform.python_version(), "leapray": f"{leapray.__version__} ({source_digest()})"}
    for name in ("torch", "ray", "pyarrow"):
        found[name] = None
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def gpus() -> list[str]:
    """Name, memory and driver of each Nvidia GPU, whether this process may use it or not."""
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(_QUERY, capture_output=True, text=True, timeout=_QUERY_S, check=True).stdout.splitlines()
    return []


def check_machine(recipe: Recipe | None) -> Iterator[Finding]:
    """Versions, memory, GPUs and disks of this machine, and whether it has the memory that a recipe takes. torch is imported only where
    there is a GPU."""
    cores, (memory, free_memory) = os.cpu_count() or 1, preflight.memory()
    yield ok(f"{socket.gethostname()}: " + ", ".join(f"{package} {found}" for package, found in versions().items() if found))
    yield ok(f"{cores} cores, {scaled(free_memory)} of {scaled(memory)} memory free")
    if not (seen := gpus()):
        yield ok("no Nvidia GPU")
    else:
        # it takes seconds to import
        import torch

        told = f"{len(seen)} x {seen[0]}; torch {torch.__version__}"
        if torch.version.cuda is None:
            yield wrong(f"{told} is built without CUDA; install the CUDA build of torch")
        elif torch.cuda.device_count() == 0:
            yield note(f"{told} sees no GPU; update the driver, or check CUDA_VISIBLE_DEVICES")
        else:
            yield ok(f"{told} sees {torch.cuda.device_count()}")
    yield from _check_disks()
    if recipe and recipe.data.stream_from == "shards":
        # it imports torch
        from leapray.data.features import channels_of

        task = _SHUFFLE_COPIES * recipe.data.shuffle_rows * shard_row_bytes(channels_of(recipe.data))
        told = f"prepare takes up to {cores} tasks x {scaled(task)} = {scaled(cores * task)} memory"
        yield ok(told) if cores * task <= _CROWDED * free_memory else note(f"{told}, which is too much; lower data.shuffle_rows")


def _check_disks() -> Iterator[Finding]:
    """Room for temporary files, and for the objects that Ray moves to disk."""
    try:
        folders = {"TMPDIR": tempfile.gettempdir()}
    except FileNotFoundError:
        yield wrong("no directory takes temporary files; make room, or set TMPDIR to a directory that can be written")
        return
    # what is wrong with Ray's folder is told where its start is checked
    with suppress(UserError):
        folder = preflight.ray_folder()
        folders["RAY_TMPDIR"] = folder.spill or os.path.dirname(folder.path)
    for variable, path in folders.items():
        use = shutil.disk_usage(existing(path))
        told = f"{path} has {scaled(use.free)} of {scaled(use.total)} free"
        full = use.free < (_LEAST_FREE if variable == "TMPDIR" else _LEAST_SHARE * use.total)
        yield wrong(f"{told}, which is too little; make room there, or set {variable} to another disk") if full else ok(told)


def check_start() -> Iterator[Finding]:
    """What keeps Ray from being started here, and where its object store would be."""
    yield from (wrong(f"Ray cannot be started on this machine: {sentence}") for sentence in preflight.obstacles())
    shared = preflight.shared_free()
    store = ray_compat.store_bytes(preflight.memory()[1], shared)
    told = f"Ray's object store takes {scaled(store)}, and /dev/shm has {scaled(shared)} free"
    size = -(-int(1.1 * store) >> 30)
    slow = f"so it would be on disk, which is slow; make room in /dev/shm, or start the container with --shm-size={size}g"
    yield ok(told) if store <= shared else note(f"{told}, {slow}")


def judge_recipe(recipe: Recipe, visits: Iterable[Visit]) -> Iterator[Finding]:
    """What a recipe needs beside its places: extras, room for shards and, unless a cluster is joined, this machine's CPUs and GPUs."""
    extras = {"mlflow": "mlflow" in recipe.training.trackers, "optuna": recipe.sweep is not None and recipe.sweep.search == "optuna"}
    for extra, needed in extras.items():
        if needed and find_spec(extra) is None:
            yield wrong(f"the recipe needs {extra}; pip install 'leapray[{extra}]'")
    resources = recipe.resources
    if recipe.training.precision == "fp16" and not resources.use_gpu:
        yield wrong("training.precision fp16 needs a GPU; set resources.use_gpu=true, or training.precision to bf16 or float32")
    if not capacity.joins():
        lacks = [capacity.lacks_labels(resources.data_nodes)] if resources.data_nodes else []
        # Ray finds a machine's accelerators by itself
        asked = {name: amount for name, amount in resources.worker_resources.items() if not name.startswith("accelerator_type:")}
        lacks += [capacity.lacks_resources(asked)] if asked else []
        yield from (wrong(f"{lack}; join a cluster that has one with RAY_ADDRESS, or leave the key out") for lack in lacks)
        held = capacity.this_machine(resources.use_gpu)
        yield from judge_capacity(recipe, lambda: capacity.plan_trainings(held, resources, flat=recipe.data.stream_from == "flat"))
    held_by = {seen.place.key: seen for seen in visits if seen.trouble is None}
    prepared = held_by.get(PREPARED)
    sources = [(held_by.get(f"{SOURCES}{name}.path"), source.fraction) for name, source in recipe.data.sources.items()]
    # it imports torch
    from leapray.data.features import channels_of

    # flat files are float64
    shards = int(
        sum(seen.bytes * part for seen, part in sources if seen)
        * shard_row_bytes(channels_of(recipe.data))
        / flat_row_bytes(recipe.data.variable_set)
    )
    if recipe.data.stream_from != "shards" or not shards or prepared is None or prepared.free is None:
        return
    room = prepared.free + prepared.bytes
    told = f"shards take up to about {scaled(shards)} of {PREPARED}, which has {scaled(prepared.free)} free"
    if room < shards:
        yield wrong(f"{told}; make room there, or set {PREPARED} to another place")
    else:
        # the shuffle writes every row twice
        yield ok(told) if room >= 2 * shards else note(f"{told}, and the shuffle takes as much again while it runs; make room there")


def judge_capacity(recipe: Recipe, plan: Callable[[], capacity.Plan]) -> Iterator[Finding]:
    """Whether a machine or cluster holds a training of the recipe, as ``plan`` tells or refuses."""
    try:
        yield ok(f"{recipe.name}: {plan().words}")
    except UserError as error:
        yield wrong(f"{recipe.name}: {error}; change the recipe's resources, or use a larger machine or cluster (RAY_ADDRESS)")
