"""Training a recipe with Ray Train: the worker, its Trainer, and what is refused before any of it starts (Ray)."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from threading import Thread
from typing import Any

import pyarrow.fs
import ray.train
import ray.train.torch
import torch

from leapray import storage
from leapray.cluster import nodes, session
from leapray.cluster.capacity import Plan
from leapray.cluster.ray_compat import KEEP_DIRECTORY
from leapray.data.features import channels_of
from leapray.data.shards import Prepared, open_prepared
from leapray.data.stream import Stream
from leapray.errors import UserError
from leapray.faults import shown
from leapray.models.directory import INFO_FILE, load_info, save_model
from leapray.models.registry import SOLVED, build_network, users_modules
from leapray.recipe import Recipe, Resources, Start, parse_recipe
from leapray.training import checkpoint
from leapray.training.baselines import solve
from leapray.training.choices import check_choices, with_defaults
from leapray.training.gauges import Gauges
from leapray.training.loop import Loop, Record, chosen, ranked
from leapray.training.memory import keep_freed_memory
from leapray.training.pace import Peers
from leapray.training.phases import UNTIMED, StepProfiler
from leapray.training.run import RecordLog, Run, following
from leapray.training.start import check_start, start_digest, starting_weights
from leapray.training.trackers import Trackers
from leapray.training.workers import Alone, Persistence, Worker

_KEEP = 2
_CURVE_SECONDS = 120.0


@dataclass(frozen=True)
class Trained:
    """A finished training: its run, its model and the record of every validation."""

    run_url: str
    model_url: str
    history: list[Record]

    @property
    def best(self) -> Record:
        """The validation whose weights the model has."""
        return ranked(self.history)[0]


def train(
    recipe: Recipe,
    progress: Callable[[Record], None] | None = None,
    threads: int | None = None,
    notice: Callable[[str], None] | None = None,
) -> Trained:
    """Train what a recipe describes, or the rest of it, and write its run directory; a finished run returns at once.

    ``progress`` gets the records of ``metrics.jsonl`` as they are logged, from another thread. ``threads`` is what a process may take of
    the CPUs, by default a worker's share of them all. ``notice`` gets a sentence when a run that may be another process's is watched for
    a while, and one where an epoch leaves out rows that fill no batch, and one on what
    could not be written beside the model, which is a warning without it. Raises UserError for anything that cannot run: data missing,
    unfinished or prepared by another recipe, too few rows, another recipe's run, one that another process trains, too small a cluster, a
    loss that diverges.
    """
    # what else may be made of the recipe is not this run's
    recipe = with_defaults(resolve(recipe)).model_copy(update={"finetune": None, "sweep": None, "ensemble": None})
    check_choices(recipe)
    run = Run(recipe.training.run)
    run.check(recipe)
    already = run.finished
    if not already:
        with storage.locked(run.url, notice or (lambda _: None)) as lock:
            # another process may have finished it meanwhile
            already = run.finished
            if not already:
                _train(recipe, run, progress, threads, notice, lock)
    if not run.finished:
        raise UserError(f"{run.model}: not written where this process can see it; a cluster needs a training.run that all nodes share")
    # one validation is no curve
    if recipe.network.name not in SOLVED and (not already or not storage.exists(run.curve)):
        _Curve(run, recipe.name).draw()
    return Trained(run.url, run.model, load_info(run.model).history)


def _train(
    recipe: Recipe,
    run: Run,
    progress: Callable[[Record], None] | None,
    threads: int | None,
    notice: Callable[[str], None] | None,
    lock: str,
) -> None:
    """Train in a run that this process holds by ``lock``."""
    prepared = open_prepared(recipe.data)
    remainder = Stream.of(recipe, prepared).remainder
    if notice and remainder and recipe.network.name not in SOLVED:
        notice(remainder)
    check_start(recipe, prepared.transform)
    with session.connected(users_modules(recipe.network.name)):
        if recipe.network.name in SOLVED:
            run.claim(recipe)
            solve(recipe, prepared, run, alone=threads is not None)
            return
        # who gives threads has planned, and knows of the cluster what this process may not (nodes.autoscaled)
        share = threads or _plan(recipe).threads
        _require_gpu(recipe.resources)
        run.claim(recipe)
        try:
            with _watched(run, recipe, progress):
                _fit(recipe, run, share if threads or recipe.resources.workers else None, lock)
        except Exception as error:
            if not run.finished:
                raise
            lost = f"{run.model} is written, but not all that goes with it ({shown(' '.join(str(error).split())[:300])})"
            (notice or warnings.warn)(lost)


@contextmanager
def _watched(run: Run, recipe: Recipe, progress: Callable[[Record], None] | None) -> Iterator[None]:
    """Hand every record to the trackers and to ``progress``, and keep the learning curve drawn."""
    found = checkpoint.complete(run.checkpoints)
    since = checkpoint.steps_of(found[-1]) if found else 0
    curve = _Curve(run, recipe.name)
    with Trackers(recipe.training.trackers, run.url, recipe.to_dict(), since) as trackers:

        def add(record: Record) -> None:
            trackers.add(record)
            if progress is not None:
                progress(record)
            curve.add(record)

        with following(run, add):
            yield


class _Curve:
    """The picture of a run so far, drawn anew at its validations, but not for ever so short ones."""

    def __init__(self, run: Run, title: str) -> None:
        self._run, self._title, self._drawn = run, title, time.monotonic()

    def add(self, record: Record) -> None:
        if record["event"] == "validation" and time.monotonic() - self._drawn >= _CURVE_SECONDS:
            self.draw()

    def draw(self) -> None:
        """Draw the validations so far; a picture that fails is told of, for the training goes on without it."""
        # it takes a second to import
        from leapray.evaluation.plots import learning_curve

        try:
            history = [record for record in self._run.records() if record["event"] == "validation"]
            if history:
                storage.write_bytes(self._run.curve, learning_curve(history, self._title))
        except Exception as error:
            warnings.warn(f"{self._run.curve} could not be drawn ({error})", stacklevel=2)
        self._drawn = time.monotonic()


def resolve(recipe: Recipe) -> Recipe:
    """The recipe with places that mean the same on every node."""
    finetune, sweep = recipe.finetune, recipe.sweep
    if finetune is not None:
        places = {"base": storage.absolute(finetune.base), "directory": storage.absolute(finetune.directory)}
        finetune = finetune.model_copy(update=places)
    if sweep is not None:
        sweep = sweep.model_copy(update={"directory": storage.absolute(sweep.directory)})
    data = recipe.data.model_copy(update={"prepared": storage.absolute(recipe.data.prepared)})
    training, start = recipe.training, recipe.training.start
    training = training.model_copy(
        update={
            "run": storage.absolute(training.run),
            "start": start and start.model_copy(update={"model": storage.absolute(start.model)}),
        }
    )
    return recipe.model_copy(update={"data": data, "training": training, "finetune": finetune, "sweep": sweep})


def _plan(recipe: Recipe) -> Plan:
    return nodes.plan_trainings(recipe.resources, flat=recipe.data.stream_from == "flat")


def _require_gpu(resources: Resources) -> None:
    if resources.use_gpu and resources.workers == 0 and not torch.cuda.is_available():
        raise UserError("resources.use_gpu asks for a GPU in this process, which sees none; set resources.workers to 1 or more")


def _fit(recipe: Recipe, run: Run, threads: int | None, lock: str) -> None:
    for key, value in KEEP_DIRECTORY.items():
        os.environ.setdefault(key, value)
    resources, config = recipe.resources, {"recipe": recipe.to_dict(), "threads": threads, "lock": lock}
    if not resources.workers:
        _work(config, Alone())
        return
    filesystem, path = storage.filesystem(run.url)
    trainer = ray.train.torch.TorchTrainer(
        _work_among_others,
        train_loop_config=config,
        scaling_config=ray.train.ScalingConfig(
            num_workers=(resources.processes, resources.workers) if resources.elastic else resources.workers,
            # a change of size costs what was done since the last checkpoint
            elastic_resize_monitor_interval_s=recipe.training.checkpoint_seconds,
            use_gpu=resources.use_gpu,
            resources_per_worker={
                "CPU": resources.cpus_per_worker,
                **({"GPU": resources.gpus_per_worker} if resources.use_gpu else {}),
                **resources.worker_resources,
            },
        ),
        run_config=ray.train.RunConfig(
            name=run.checkpoints.rsplit("/", 1)[-1],
            storage_path=path,
            storage_filesystem=None if storage.is_local(run.url) else pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(filesystem)),
            # without a limit of its own: Persistence knows better when to stop
            failure_config=ray.train.FailureConfig(max_failures=-1),
            callbacks=[Persistence(run)],
            worker_runtime_env=nodes.training_environment(resources.use_gpu),
        ),
    )
    _beside(trainer.fit)


def _beside(run: Callable[[], Any]) -> None:
    """Run in another thread: in the main one Ray Train takes Ctrl-C for itself, and ends the process without a word."""
    ended: Future[Any] = Future()

    def work() -> None:
        try:
            ended.set_result(run())
        except BaseException as error:
            ended.set_exception(error)

    # a daemon, so that nothing waits for it once the command is interrupted
    Thread(target=work, name="Ray Train", daemon=True).start()
    ended.result()


def _work_among_others(config: dict[str, Any]) -> None:
    _work(config, Worker())


def _work(config: dict[str, Any], place: Alone) -> None:
    """One process of the training. Checkpoints are ours, in the run's directory, so that every start goes on alike."""
    keep_freed_memory()
    recipe = parse_recipe(config["recipe"])
    rank, world = place.rank, place.world
    gpu = recipe.resources.use_gpu
    device = place.device(gpu)
    if config["threads"] and not gpu:
        # Ray grants a worker as many threads as it reserves CPUs, though the others may stand idle
        torch.set_num_threads(min(config["threads"], max((os.cpu_count() or 1) // place.on_this_node, 1)))
    run, prepared = Run(recipe.training.run), open_prepared(recipe.data)
    torch.manual_seed(recipe.training.seed)
    network = build_network(recipe.network.name, recipe.network.options, channels_of(recipe.data))
    network = place.wrap(network, device)
    peers = Peers(rank, world, lambda array: place.gather(array, device), place.warned)
    asked = recipe.training.profile
    phases = StepProfiler(asked, device, partial(storage.write_bytes, run.profile(rank))) if asked else UNTIMED
    loop = Loop(network, Stream.of(recipe, prepared, rank, world), recipe.training, device, peers, recipe.resources.cpu_threading, phases)
    # rank 0 decides, so that all continue from the same checkpoint
    found = place.agree(checkpoint.complete(run.checkpoints)[-1:])
    if found:
        _restore(loop, found[0], prepared, recipe.training.start)
    elif recipe.training.start:
        loop.begin_with(starting_weights(recipe.training.start))
    keeper = _Keeper(run, recipe, prepared, loop, config["lock"]) if rank == 0 else None

    gauges = Gauges(run.url, rank, world)

    def report(record: Record) -> None:
        gauges.add(record)
        if keeper:
            keeper.log(record)
        if record["event"] == "validation":
            place.report(record)

    with gauges, nodes.data_nodes(recipe.resources.data_nodes):
        fitted = loop.fit(report, keeper.keep if keeper else lambda: None)
    if keeper:
        keeper.save(run.model, fitted.weights, fitted.history)


class _Keeper:
    """What rank 0 writes into the run: its log, its checkpoints, and the models of its best validations.

    What would matter to another training of the run is only written while ``lock`` holds it; UserError afterwards.
    """

    def __init__(self, run: Run, recipe: Recipe, prepared: Prepared, loop: Loop, lock: str) -> None:
        self._run, self._recipe, self._prepared, self._loop, self._lock = run, recipe, prepared, loop, lock
        self._log = RecordLog(run, loop.history)
        self._start = start_digest(recipe.training.start)

    def log(self, record: Record) -> None:
        """Log a record; a validation's model is saved when it is among the best or the last ones so far."""
        if record["event"] == "validation":
            storage.require_lock(self._run.url, self._lock)
            history, training = list(self._loop.history), self._recipe.training
            kept = {self._run.validated_model(one) for one in chosen(history, training.keep_best, training.keep_last)}
            url = self._run.validated_model(record)
            if url in kept:
                self.save(url, self._loop.evaluated.state_dict(), history)
            for other in set(checkpoint.complete(self._run.validated, INFO_FILE)) - kept:
                storage.remove(other)
        self._log.add(record)

    def keep(self) -> None:
        """Write a checkpoint of the loop as it is now."""
        storage.require_lock(self._run.url, self._lock)
        state = {"transform": self._prepared.transform.digest(), "start": self._start, "loop": self._loop.state()}
        # one place for each state, so that a checkpoint is never written over
        url = checkpoint.step_url(self._run.checkpoints, self._loop.done, len(self._loop.history))
        if url not in checkpoint.complete(self._run.checkpoints):
            checkpoint.save(url, state)
        checkpoint.prune(self._run.checkpoints, _KEEP)

    def save(self, url: str, weights: Mapping[str, torch.Tensor], history: Sequence[Record]) -> None:
        """Write a model."""
        storage.require_lock(self._run.url, self._lock)
        save_model(url, weights, self._recipe.network, self._prepared.transform, recipe=self._recipe.to_dict(), history=history)


def _restore(loop: Loop, url: str, prepared: Prepared, start: Start | None) -> None:
    state, digest = checkpoint.load(url), start_digest(start)
    if start and digest and state.get("start") not in (None, digest):
        raise UserError(f"{url}: began with other weights than {start.model} holds now; choose another training.run or remove this one")
    if state["transform"] != prepared.transform.digest():
        raise UserError(
            f"{url}: made with transform {state['transform']}, but {prepared.url} was prepared anew with {prepared.transform.digest()}; "
            f"choose another training.run or remove this one"
        )
    loop.restore(state["loop"])
