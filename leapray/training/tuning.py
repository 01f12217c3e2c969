"""Many trainings at once: a queue of recipes worked off by Ray Tune, each by its own Trainer in its own run directory (Ray).

What is left of a training lies in its run, so a queue that was interrupted is simply worked off again: finished runs return at once and
others go on. Nothing of Tune's own, which is pickled, is ever read back.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

import ray.tune
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler
from ray.tune.search import Searcher

from leapray.cluster import session
from leapray.cluster.capacity import Plan
from leapray.cluster.ray_compat import TUNE_ENVIRONMENT, show_earlier
from leapray.errors import PassingError, UserError
from leapray.recipe import Recipe, parse_recipe
from leapray.training.loop import Record
from leapray.training.run import Run, following
from leapray.training.trainer import train

_MAX_FAILURES = 8
"""Deaths of its process that a training outlives: it goes on from its last checkpoint, and sees several where machines are lent."""
_METRIC, _TIME, _CAUSE = "score", "validation", "cause"
_WORST = -1e300
"""Stands for a score that is not known, since Tune wants a number."""


State = Literal["finished", "stopped", "failed"]


@dataclass(frozen=True)
class Outcome:
    """How a training ended, and why if it did not finish."""

    state: State
    cause: str = ""
    again: bool = False
    """It failed by no fault of its recipe that is known: another start may do better."""


class Queue(Protocol):
    """The trainings to do, and who is told of them."""

    def next(self) -> tuple[str, Recipe] | None:
        """The name and the recipe of the next training; None when there is no other."""

    def ended(self, name: str, outcome: Outcome) -> None:
        """A training has ended."""


@dataclass(frozen=True)
class Stopping:
    """When a training that lags behind the others is stopped, counted in validations (see :class:`leapray.recipe.Sweep`)."""

    rule: Literal["asha", "median", "none"] = "none"
    validations: int = 1
    """Of a training that runs to its end."""
    grace: int = 1
    reduction: int = 3
    earlier: Sequence[Sequence[float]] = ()
    """Scores of every validation of trainings that ended before, which the others are compared with too."""

    def scheduler(self) -> TrialScheduler:
        """The rule as Tune takes it, told of the earlier trainings."""
        scheduler = self._scheduler()
        results = ([{_METRIC: score, _TIME: validation} for validation, score in enumerate(curve, start=1)] for curve in self.earlier)
        show_earlier(scheduler, results)
        return scheduler

    def _scheduler(self) -> TrialScheduler:
        at = {"time_attr": _TIME, "metric": _METRIC, "mode": "max"}
        if self.rule == "asha" and self.validations > self.grace:
            rungs = {"grace_period": self.grace, "max_t": self.validations - 1, "reduction_factor": self.reduction}
            # none at the last validation, and no end at a time: a training ends by itself, when its model is written
            return AsyncHyperBandScheduler(**at, **rungs, stop_last_trials=False)
        if self.rule == "median":
            # without the last, a training that has too few to compare with makes way for one that waits, and starts anew after it
            return MedianStoppingRule(**at, grace_period=self.grace, min_samples_required=2, min_time_slice=float("inf"))
        return FIFOScheduler()


def work_off(
    queue: Queue, count: int, plan: Plan, stopping: Stopping = Stopping(), follow: Callable[[str, Record], None] | None = None
) -> None:
    """Train what the queue gives, ``count`` trainings at most, as many at a time as planned; those that fail stop no other.

    ``follow`` gets the name and the records of each training as they are logged, from other threads. To be called within
    :func:`session.connected`.
    """
    if not count:
        return
    for key, value in TUNE_ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    with tempfile.TemporaryDirectory(prefix="leapray-tune-") as directory, ExitStack() as stack:
        running = _Running(queue, follow, stack)
        tuner = ray.tune.Tuner(
            ray.tune.with_resources(_training(plan.threads), _resources),
            tune_config=ray.tune.TuneConfig(
                num_samples=count,
                max_concurrent_trials=plan.at_once,
                search_alg=_Suggestions(running),
                scheduler=stopping.scheduler(),
                # to start a process takes seconds; one whose training was stopped cannot take another
                reuse_actors=stopping.rule == "none",
                trial_name_creator=lambda trial: trial.trial_id,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=ray.tune.RunConfig(
                name="trainings",
                storage_path=directory,
                verbose=0,
                failure_config=ray.tune.FailureConfig(max_failures=_MAX_FAILURES),
                callbacks=[_Endings(running)],
            ),
        )
        tuner.fit()


def _resources(config: dict[str, Any]) -> ray.tune.PlacementGroupFactory:
    """What the process of a trial takes itself: all of a training in it, next to nothing when it only waits for workers."""
    own = parse_recipe(config["recipe"]).resources
    if own.workers:
        # a byte: Tune wants something, and a part of a CPU could be what the workers then lack
        return ray.tune.PlacementGroupFactory([{"memory": 1}])
    return ray.tune.PlacementGroupFactory([{"CPU": own.cpus_per_worker} | ({"GPU": own.gpus_per_worker} if own.use_gpu else {})])


def _training(threads: int) -> Callable[[dict[str, Any]], None]:
    """What the process of a trial does: the verb, told to Tune validation by validation."""

    def run(config: dict[str, Any]) -> None:
        recipe = parse_recipe(config["recipe"])
        training = recipe.training

        def report(record: Record) -> None:
            if record["event"] == "validation":
                validation = round(record["step"] / record["steps"] * training.epochs * training.validations)
                ray.tune.report({_METRIC: record["score"], _TIME: validation})

        try:
            train(recipe, report, threads)
        except PassingError:
            raise
        except UserError as error:
            # not an exception, which Tune would try again
            ray.tune.report({_METRIC: _WORST, _TIME: 0, _CAUSE: str(error)})

    return run


def _shown(follow: Callable[[str, Record], None], name: str, record: Record) -> None:
    """Show a record; a terminal that has gone stops no training."""
    with suppress(OSError):
        follow(name, record)


class _Running:
    """The trainings of a queue that have begun, by Tune's names of their trials."""

    def __init__(self, queue: Queue, follow: Callable[[str, Record], None] | None, stack: ExitStack) -> None:
        self._queue, self._follow, self._stack = queue, follow, stack
        self._begun: dict[str, tuple[str, Run, ExitStack]] = {}

    def begin(self, trial: str) -> dict[str, Any] | None:
        """The configuration of another trial; None when there is none."""
        item = self._queue.next()
        if item is None:
            return None
        name, recipe = item
        run, follower = Run(recipe.training.run), ExitStack()
        if self._follow is not None:
            # the outer stack closes it whatever else happens
            self._stack.enter_context(follower)
            follower.enter_context(following(run, partial(_shown, self._follow, name)))
        self._begun[trial] = name, run, follower
        return {"recipe": recipe.to_dict()}

    def end(self, trial: str, cause: str, again: bool = False) -> None:
        """A trial has ended: with its model, stopped before it, or for the cause given."""
        name, run, follower = self._begun.pop(trial)
        follower.close()
        state: State = "finished" if run.finished else "failed" if cause else "stopped"
        self._queue.ended(name, Outcome(state, "" if state == "finished" else cause, again and state == "failed"))

    def __getstate__(self) -> dict[str, Any]:
        # Tune keeps a copy of what it was given, which nobody reads
        return {}


class _Suggestions(Searcher):
    """The queue, as Tune asks for it."""

    def __init__(self, running: _Running) -> None:
        super().__init__(metric=_METRIC, mode="max")
        self._running = running

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        config: dict[str, Any] | None = self._running.begin(trial_id)
        return Searcher.FINISHED if config is None else config

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        pass

    def save(self, checkpoint_path: str) -> None:
        pass

    def restore(self, checkpoint_path: str) -> None:
        pass


class _Endings(ray.tune.Callback):
    """What Tune tells of trials that end."""

    def __init__(self, running: _Running) -> None:
        self._running = running

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._running.end(trial.trial_id, (trial.last_result or {}).get(_CAUSE, ""))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        error = trial.get_error()
        mistake = session.find_user_error(error)
        self._running.end(trial.trial_id, _in_one_line(error), again=mistake is None or isinstance(mistake, PassingError))


def _in_one_line(error: BaseException | None) -> str:
    """What a trial failed of: the user's mistake, or the last line that the exception has."""
    if found := session.find_user_error(error):
        return str(found)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
