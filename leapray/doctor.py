"""``leapray doctor``: what this machine or cluster has, what a recipe needs of it, and what is wrong, each with its remedy."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import subprocess
import tempfile
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import leapray
from leapray import storage
from leapray.climsim.calendar import is_file_name
from leapray.climsim.pairs import REMEDY, archive, incomplete_in_words
from leapray.cluster import capacity, preflight, ray_compat, shadows
from leapray.console import scaled
from leapray.data.findings import Finding, Verdict
from leapray.data.row_bytes import flat_row_bytes, shard_row_bytes
from leapray.errors import UserError
from leapray.evaluation.tables import SUFFIXES, is_table
from leapray.faults import explained, shown
from leapray.provenance import source_digest
from leapray.recipe import Recipe

PATIENCE_S, _CONNECT_S, _QUERY_S = 40.0, 5.0, 20.0
"""Seconds for all places, for a connection, and for the driver of the GPUs."""
_QUERY = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
_LEAST_FREE, _LEAST_SHARE = 2 * 10**9, 0.05
"""Free bytes for temporary files, and the free share below which Ray puts no objects on a disk (``local_fs_capacity_threshold``)."""
_SHUFFLE_COPIES, _CROWDED = 3, 0.8
"""Copies of a task's rows that the shuffle holds, and the share of the memory that they may take."""
_SOURCES, _PREPARED = "data.sources.", "data.prepared"
_PROBE = b"leapray doctor"


@dataclass(frozen=True)
class Place:
    """A place that a recipe names: its key, its URL, and whether it is written to."""

    key: str
    url: str
    writes: bool


@dataclass(frozen=True)
class Visit:
    """A place that was tried: why it cannot be used, with the remedy; bytes of its files; free bytes of a local disk; and the names of
    files that no verb reads."""

    place: Place
    trouble: str | None = None
    bytes: int = 0
    free: int | None = None
    passed_over: tuple[str, ...] = ()


def ok(text: str) -> Finding:
    return Finding(Verdict.OK, text)


def note(text: str) -> Finding:
    return Finding(Verdict.NOTE, text)


def wrong(text: str) -> Finding:
    return Finding(Verdict.WRONG, text)


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
            yield from judge_visits(visits, prepared=_is_prepared(recipe, visits))

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
        use = shutil.disk_usage(_existing(path))
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


def named_places(recipe: Recipe) -> list[Place]:
    """What a recipe reads and where it writes."""
    data, training = recipe.data, recipe.training
    reads = {f"{_SOURCES}{name}.path": source.path for name, source in data.sources.items()}
    reads |= {"data.statistics": data.statistics} if data.statistics else {}
    reads |= {"training.start.model": training.start.model} if training.start else {}
    writes = {_PREPARED: data.prepared, "training.run": training.run}
    sections = {"finetune": recipe.finetune, "sweep": recipe.sweep, "ensemble": recipe.ensemble}
    writes |= {f"{name}.directory": section.directory for name, section in sections.items() if section is not None}
    return [Place(key, url, False) for key, url in reads.items()] + [Place(key, url, True) for key, url in writes.items()]


def visit_all(places: Sequence[Place], patience: float = PATIENCE_S) -> tuple[Visit, ...]:
    """Try places at the same time, for at most so many seconds."""
    found: dict[Place, Visit] = {}

    def run(place: Place) -> None:
        try:
            found[place] = visit(place)
        except Exception as error:
            # its own words may hold anything
            found[place] = Visit(place, f"{shown(place.url)}: could not be tried ({type(error).__name__})")

    threads = [threading.Thread(target=run, args=(place,), daemon=True) for place in places]
    stop = time.monotonic() + patience
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(stop - time.monotonic(), 0))
    late = f"did not answer within {patience:g} s; check its address and the network"
    return tuple(found.get(place) or Visit(place, f"{shown(place.url)}: {late}") for place in places)


def visit(place: Place) -> Visit:
    """Try a place: where the recipe writes, write and remove a small file; where it reads, list the files."""
    try:
        local, url = storage.is_local(place.url), storage.absolute(place.url)
        free = shutil.disk_usage(_existing(url)).free if local else None
        if silence := None if local else _s3_silence(place.url):
            return Visit(place, f"{shown(place.url)}: {silence}")
        if place.writes:
            _write(_folder(url) if local else url)
        if place.key.startswith(_SOURCES):
            return _visit_source(place, url, free)
        size = sum(storage.list_sizes(url).values())
    except UserError as error:
        return Visit(place, str(error))
    trouble = None if place.writes or size else f"{shown(url)}: nothing is there; set {place.key} to where the files are"
    return Visit(place, trouble, size, free)


def _visit_source(place: Place, url: str, free: int | None) -> Visit:
    """A source has flat files; netCDF pairs alone have to be converted first."""
    listed = storage.list_data(url, lambda name: is_table(name) or is_file_name(name))
    tables = {name: size for name, size in listed.sizes.items() if is_table(name)}
    pairs = sorted(listed.sizes.keys() - tables.keys())
    if tables:
        others = [*listed.passed_over, *(name.removeprefix(url).strip("/") for name in pairs)]
        return Visit(place, None, sum(tables.values()), free, tuple(sorted(others)))
    if not pairs:
        nothing = f"no {' or '.join(SUFFIXES)} files are there; set {place.key} to where the files are{listed.remark}"
        return Visit(place, f"{shown(url)}: {nothing}", 0, free)
    found = archive(pairs)
    count = f"{len(found.pairs)} netCDF pair{'' if len(found.pairs) == 1 else 's'} and no flat files"
    holes = f". {incomplete_in_words(found.incomplete)}; {REMEDY}" if found.incomplete else ""
    convert = f"run `leapray convert {shown(place.url)} DEST` first and set {place.key} to DEST"
    return Visit(place, f"{shown(place.url)} holds {count}; {convert}{holes}", 0, free, listed.passed_over)


def _s3_silence(url: str) -> str | None:
    """Why nothing answers at the endpoint of an S3 URL within 5 s; storage alone would try for minutes. A proxy is not tried."""
    fs, _ = storage.filesystem(url)
    if "s3" not in fs.protocol:
        return None
    with explained(url):
        fs.connect()
    endpoint = urlsplit(fs.s3.meta.endpoint_url)
    host, port = endpoint.hostname or "", endpoint.port or (443 if endpoint.scheme == "https" else 80)
    if endpoint.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(host):
        return None
    try:
        socket.create_connection((host, port), timeout=_CONNECT_S).close()
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        return f"nothing answers at {endpoint.scheme}://{host}:{port} ({reason}); check AWS_ENDPOINT_URL and the network"
    return None


def _existing(path: str) -> Path:
    found = Path(path)
    while not found.exists():
        found = found.parent
    return found


def _folder(path: str) -> str:
    """The folder that is there already in which a local place is or would be made; raises UserError for a file in its way."""
    if not (found := _existing(path)).is_dir():
        raise UserError(f"{path}: cannot be made, {found} is a file")
    return str(found)


def _probe(folder: str) -> str:
    # listings ignore names that begin so
    return storage.join(folder, f".tmp-doctor-{uuid.uuid4().hex}")


def _write(folder: str) -> None:
    url = _probe(folder)
    try:
        storage.write_bytes(url, _PROBE)
    except UserError as error:
        # name the place, not the file that tried it
        raise UserError(str(error).replace(shown(url), shown(folder))) from error
    storage.remove(url)


@contextmanager
def marked(visits: Iterable[Visit]) -> Iterator[dict[str, str]]:
    """Small files, by key, at the local places that are written to: a node that does not see one has another disk of that name."""
    marks: dict[str, str] = {}
    try:
        for seen in visits:
            if seen.free is not None and seen.place.writes and seen.trouble is None:
                marks[seen.place.key] = _probe(_folder(storage.absolute(seen.place.url)))
                storage.write_bytes(marks[seen.place.key], _PROBE)
        yield marks
    finally:
        for path in marks.values():
            Path(path).unlink(missing_ok=True)


def _is_prepared(recipe: Recipe, visits: Iterable[Visit]) -> bool:
    """Whether the recipe's data is prepared, so that its sources are not needed; asked only where one of these is in trouble."""
    if not any(seen.trouble and seen.place.key.startswith(_SOURCES) for seen in visits):
        return False
    from leapray.data.shards import open_prepared

    with suppress(UserError):
        open_prepared(recipe.data)
        return True
    return False


def judge_visits(visits: Iterable[Visit], *, prepared: bool = False) -> Iterator[Finding]:
    """Places as one machine found them. Trouble with a source is only noted where its data is ``prepared`` already."""
    for seen in visits:
        key, url = seen.place.key, shown(seen.place.url)
        if seen.trouble is not None:
            remedy = f"; set {key} to a place that can be written" if seen.place.writes else ""
            yield (note if prepared and key.startswith(_SOURCES) else wrong)(f"{key} cannot be used: {seen.trouble}{remedy}")
        elif seen.place.writes:
            free = "" if seen.free is None else f", {scaled(seen.free)} free"
            yield ok(f"{key}: {url} can be written{free}")
        else:
            yield ok(f"{key}: {url} holds {scaled(seen.bytes)}")
        if seen.passed_over:
            yield note(f"{key}: {storage.passed_over_in_words(seen.passed_over)}")


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
    prepared = held_by.get(_PREPARED)
    sources = [(held_by.get(f"{_SOURCES}{name}.path"), source.fraction) for name, source in recipe.data.sources.items()]
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
    told = f"shards take up to about {scaled(shards)} of {_PREPARED}, which has {scaled(prepared.free)} free"
    if room < shards:
        yield wrong(f"{told}; make room there, or set {_PREPARED} to another place")
    else:
        # the shuffle writes every row twice
        yield ok(told) if room >= 2 * shards else note(f"{told}, and the shuffle takes as much again while it runs; make room there")


def judge_capacity(recipe: Recipe, plan: Callable[[], capacity.Plan]) -> Iterator[Finding]:
    """Whether a machine or cluster holds a training of the recipe, as ``plan`` tells or refuses."""
    try:
        yield ok(f"{recipe.name}: {plan().words}")
    except UserError as error:
        yield wrong(f"{recipe.name}: {error}; change the recipe's resources, or use a larger machine or cluster (RAY_ADDRESS)")
