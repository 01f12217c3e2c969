"""A sweep's trials: which are begun with what values, what is noted of them, and what comes of those that end."""

import json
import os
import select
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from leapray.cluster import session
from leapray.data.prepare import prepare
from leapray.errors import UserError
from leapray.recipe import Recipe, load_recipe, parse_recipe
from leapray.training import sweep as room
from leapray.training.run import Run
from leapray.training.space import draw
from leapray.training.sweep import TRIALS, Trials, show, sweep
from leapray.training.trainer import train
from leapray.training.tuning import Outcome, Stopping
from tests.samples import recipe_values, sample_recipe, write_flat

LR, DECAY, LOSS = "training.optimizer.options.lr", "training.optimizer.options.weight_decay", "training.loss.name"
SPACE = {LR: {"loguniform": [1e-4, 1e-1]}, LOSS: {"choice": ["huber", "mae", "mse"]}}
UNUSED: Any = SimpleNamespace(transform=None)
"""Stands for prepared data, of which a training that begins anew asks nothing here."""


def values(root: Path, *, training: dict[str, Any] | None = None, **settings: Any) -> dict[str, Any]:
    content = recipe_values(root, **{"epochs": 2, "batch_size": 16, **(training or {})})
    return content | {"sweep": {"directory": str(root / "sweep"), "space": SPACE, "trials": 4, **settings}}


def recipe_of(root: Path, **settings: Any) -> Recipe:
    return parse_recipe(values(root, **settings))


def noted(root: Path) -> list[dict[str, Any]]:
    return json.loads((root / "sweep" / TRIALS).read_text())["trials"]


def validate(recipe: Recipe, *scores: float) -> None:
    """Leave validations of these scores in a trial's run, as a training would."""
    run = Run(recipe.training.run)
    records = [
        {
            "event": "validation",
            "epoch": epoch,
            "step": 6 * epoch,
            "score": score,
            "skill": score,
            "r2": -9.0 - score,
            "seconds": 2.0,
            "val_seconds": 0.5,
        }
        for epoch, score in enumerate(scores, start=1)
    ]
    steps = [{"event": "step", "epoch": len(scores) + 1, "step": 6 * len(scores) + 1, "loss": 1.0}]
    Path(run.metrics).parent.mkdir(parents=True, exist_ok=True)
    Path(run.metrics).write_text("".join(json.dumps(record) + "\n" for record in records + steps))


def finish(recipe: Recipe) -> None:
    """Leave what a finished run is known by."""
    Path(Run(recipe.training.run).model).mkdir(parents=True)
    (Path(Run(recipe.training.run).model) / "model.json").write_text("{}")


def end(trials: Trials, item: tuple[str, Recipe] | None, state: str, *scores: float, cause: str = "") -> None:
    assert item is not None
    validate(item[1], *scores)
    trials.ended(item[0], Outcome(state, cause))  # type: ignore[arg-type]


def names(trials: Trials) -> list[str]:
    """Take all that are left."""
    found = []
    while (item := trials.next()) is not None:
        found.append(item[0])
    return found


def test_each_trial_is_the_recipe_with_the_values_that_its_number_draws(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path)
    trials = Trials(recipe, UNUSED)
    assert trials.left == 4
    assert recipe.sweep is not None
    for number in range(4):
        name, trial = trials.next() or pytest.fail("no trial")
        drawn = draw(recipe.sweep.space, number, 4, 0)
        assert (name, trial.sweep) == (f"trial {number}", None)
        assert trial.training.optimizer.options == {"lr": drawn[LR]}
        assert trial.training.loss.name == drawn[LOSS]
        assert trial.training.run == str(tmp_path / "sweep" / "trials" / f"000{number}")
        assert noted(tmp_path)[number] | {"number": number, "values": drawn, "state": "running"} == noted(tmp_path)[number]
    assert trials.next() is None
    assert trials.left == 0


def test_what_a_trial_reached_is_its_best_validation_and_all_the_time_that_it_took(tmp_path: Path) -> None:
    trials = Trials(recipe_of(tmp_path), UNUSED)
    end(trials, trials.next(), "stopped", 0.25, 0.5, 0.375)
    (first,) = trials.done
    assert (first.score, first.skill, first.r2) == (0.5, 0.5, -9.5)
    assert (first.epochs, first.curve, first.seconds, first.state) == (3, (0.25, 0.5, 0.375), 7.5, "stopped")
    assert noted(tmp_path) == [first.model_dump(mode="json")]


def test_an_interrupted_sweep_takes_up_what_ran_then_what_was_never_begun_and_nothing_that_ended(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, trials=6)
    trials = Trials(recipe, UNUSED)
    items = [trials.next() for _ in range(5)]
    end(trials, items[3], "finished", 0.5)
    end(trials, items[0], "failed", cause="bad luck")
    end(trials, items[2], "stopped", 0.25)
    again = Trials(recipe, UNUSED)
    assert [trial.number for trial in again.done] == [3, 0, 2]
    assert again.done == trials.done
    assert again.left == 3
    assert again.next() == items[1]
    # interrupted anew, before the next was taken up
    third = Trials(recipe, UNUSED)
    assert names(third) == ["trial 1", "trial 4", "trial 5"]
    assert [trial["number"] for trial in noted(tmp_path)] == [3, 0, 2, 1, 4, 5]


def test_more_trials_extend_a_sweep_and_fewer_leave_what_is_begun(tmp_path: Path) -> None:
    trials = Trials(recipe_of(tmp_path, trials=3), UNUSED)
    items = [trials.next() for _ in range(3)]
    end(trials, items[1], "finished", 0.5)
    assert names(Trials(recipe_of(tmp_path, trials=5), UNUSED)) == ["trial 0", "trial 2", "trial 3", "trial 4"]
    assert Trials(recipe_of(tmp_path, trials=1), UNUSED).left == 4


def test_a_trial_that_finished_unnoticed_is_not_begun_again(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, trials=2)
    _, first = Trials(recipe, UNUSED).next() or pytest.fail("no trial")
    validate(first, 0.25)
    finish(first)
    trials = Trials(recipe, UNUSED)
    assert names(trials) == ["trial 1"]
    assert [(trial.name, trial.state, trial.score) for trial in trials.done] == [("trial 0", "finished", 0.25)]


@pytest.mark.parametrize(("stopping", "scores"), [("none", (0.5,)), ("asha", ())])
def test_what_no_scheduler_stopped_has_failed(tmp_path: Path, stopping: str, scores: tuple[float, ...]) -> None:
    trials = Trials(recipe_of(tmp_path, stopping=stopping), UNUSED)
    end(trials, trials.next(), "stopped", *scores)
    assert (trials.done[0].state, trials.done[0].cause) == ("failed", "its process ended")


def test_a_grid_is_gone_through_without_a_number_of_trials(tmp_path: Path) -> None:
    space = {LR: {"grid": [1e-3, 1e-2]}, LOSS: {"grid": ["huber", "mae", "mse"]}}
    content = values(tmp_path, space=space, search="grid")
    del content["sweep"]["trials"]
    trials = Trials(parse_recipe(content), UNUSED)
    names(trials)
    assert {(trial["values"][LR], trial["values"][LOSS]) for trial in noted(tmp_path)} == {
        (lr, loss) for lr in (1e-3, 1e-2) for loss in ("huber", "mae", "mse")
    }
    assert len(noted(tmp_path)) == 6


def score(trial: Recipe) -> float:
    """A landscape: the best learning rate is 1e-2."""
    return -abs(float(np.log10(trial.training.optimizer.options["lr"])) + 2)


def searched(root: Path, restart_after: int | None = None, count: int = 14) -> list[dict[str, Any]]:
    """The values that Optuna tried one by one, the driver being killed after some trials, in the middle of the next."""
    pytest.importorskip("optuna")
    recipe = recipe_of(root, trials=count, search="optuna")
    trials = Trials(recipe, UNUSED)
    for number in range(count):
        item = trials.next()
        assert item is not None
        if number == restart_after:
            trials = Trials(recipe, UNUSED)
            assert trials.next() == item
        end(trials, item, "failed" if number == 3 else "finished", score(item[1]))
    return [trial["values"] for trial in noted(root)]


def test_a_search_by_optuna_that_is_interrupted_goes_on_as_it_would_have_gone(tmp_path: Path) -> None:
    whole = searched(tmp_path / "whole")
    assert len({trial[LR] for trial in whole}) == 14
    assert searched(tmp_path / "cut", restart_after=11) == whole


def test_a_bad_draw_of_optuna_is_a_trial_that_failed_and_the_next_one_follows(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    space = {LOSS: {"choice": ["huber", "none such"]}, LR: {"loguniform": [1e-4, 1e-1]}}
    trials = Trials(recipe_of(tmp_path, space=space, trials=8, search="optuna"), UNUSED)
    begun = names(trials)
    assert 0 < len(begun) < 8
    assert {trial.values[LOSS] for trial in trials.done} == {"none such"}
    assert len(begun) + len(trials.done) == 8
    assert all("none such" in trial.cause and LOSS in trial.cause for trial in trials.done)


@pytest.fixture
def reach(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Says what trials come to, by their numbers, where nothing is trained: state and score."""

    def says(*reached: tuple[str, float]) -> None:
        def work(trials: Trials, *_: object) -> None:
            while (item := trials.next()) is not None:
                state, score = reached[int(item[0].split()[1])]
                end(trials, item, state, score, cause="bad luck" if state == "failed" else "")

        monkeypatch.setattr(room, "work_off", work)

    monkeypatch.setattr(room, "open_prepared", lambda data: UNUSED)
    monkeypatch.setattr(session, "connected", nullcontext)
    says()
    return says


def test_every_trial_is_checked_before_any_starts(tmp_path: Path, reach: Callable[..., None]) -> None:
    wrong_options = {"training.loss": {"grid": ["mae", {"name": "huber", "options": {"delta": -1}}]}}
    with pytest.raises(UserError, match=r"^trial 1: sweep\.space with training\.loss=.*delta.* is -1"):
        sweep(recipe_of(tmp_path, space=wrong_options))
    # each value is good beside the recipe's own of the other
    apart = {"training.epochs": {"grid": [2, 1]}, "training.swa.start": {"grid": [1, 2]}}
    with pytest.raises(
        UserError, match=r"^trial 3: sweep\.space with training\.epochs=1, training\.swa\.start=2: .*after the last of 1 epochs"
    ):
        sweep(recipe_of(tmp_path, space=apart, training={"swa": {"start": 1}}))
    assert not (tmp_path / "sweep").exists()


def test_what_no_machine_holds_is_refused_with_the_arithmetic(tmp_path: Path, reach: Callable[..., None]) -> None:
    space = {"resources.cpus_per_worker": {"choice": [10_000]}}
    with pytest.raises(UserError, match="1 worker x 10000 CPU = 10000 CPUs"):
        sweep(recipe_of(tmp_path, space=space))
    assert not (tmp_path / "sweep").exists()


def test_a_recipe_without_a_sweep_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no section sweep"):
        sweep(parse_recipe(recipe_values(tmp_path)))


def test_a_directory_is_continued_by_the_same_sweep_only(tmp_path: Path, reach: Callable[..., None]) -> None:
    reach(("finished", 0.25), ("finished", 0.5), ("stopped", 0.125))
    assert len(sweep(recipe_of(tmp_path, trials=2)).trials) == 2
    assert len(sweep(recipe_of(tmp_path, trials=3, concurrent=1)).trials) == 3
    for changes, words in (
        ({"space": {LR: {"uniform": [0.1, 0.2]}}}, r"sweep\.space.*uniform: None, now \[0\.1, 0\.2\]"),
        ({"seed": 1}, r"sweep\.seed: 0, now 1"),
        ({"training": {"epochs": 3}}, r"training\.epochs: 2, now 3"),
    ):
        with pytest.raises(UserError, match=words):
            sweep(recipe_of(tmp_path, **changes))
    assert len(noted(tmp_path)) == 3


@dataclass(frozen=True)
class Known:
    """What a scheduler knows a trial by."""

    trial_id: str = "another"


@pytest.mark.parametrize("rule", ["asha", "median"])
def test_trials_are_compared_with_those_of_an_earlier_start(rule: str) -> None:
    def decided(score: float, *earlier: list[float]) -> str:
        scheduler = Stopping(rule, validations=9, earlier=earlier).scheduler()  # type: ignore[arg-type]
        scheduler.on_trial_add(None, Known())
        return scheduler.on_trial_result(None, Known(), {"score": score, "validation": 1})

    earlier = [0.2, 0.3, 0.4], [0.1], [0.3, 0.35, 0.5, 0.6]
    assert decided(0.05) == "CONTINUE"
    assert decided(0.05, *earlier) == "STOP"
    assert decided(0.5, *earlier) == "CONTINUE"


def test_the_best_trial_is_written_as_a_plain_recipe_beside_the_plots(
    tmp_path: Path, reach: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    reach(("finished", 0.25), ("stopped", 0.125), ("failed", 0.75), ("finished", 0.5))
    recipe = recipe_of(tmp_path)
    done = sweep(recipe)
    assert [trial.number for trial in done.ranked] == [3, 0, 1, 2]
    assert [trial["number"] for trial in noted(tmp_path)] == [0, 1, 2, 3]
    best, theirs = load_recipe(done.url), recipe.trial(3, done.best.values)
    assert (best.sweep, best.training.run) == (None, str(tmp_path / "sweep" / "best"))
    assert (best.network, best.data) == (theirs.network, theirs.data)
    assert best.training.model_copy(update={"run": ""}) == theirs.training.model_copy(update={"run": ""})
    for name in ("sweep.png", "best_so_far.png"):
        assert (tmp_path / "sweep" / name).read_bytes().startswith(b"\x89PNG")
    show(done)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines if line and line[-1] in ("finished", "stopped")] == ["3", "0", "1"]
    assert ["trial", "2", "failed:", "bad", "luck"] in lines


def test_when_all_trials_fail_so_does_the_sweep(tmp_path: Path, reach: Callable[..., None]) -> None:
    reach(("failed", 0.5), ("failed", 0.5))
    with pytest.raises(UserError, match="all 2 trials failed, trial 0 because: bad luck"):
        sweep(recipe_of(tmp_path, trials=2))


@pytest.fixture(scope="module")
def root(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared data."""
    root = tmp_path_factory.mktemp("sweep")
    write_flat(root / "flat", stop="0001-05")
    prepare(sample_recipe(root))
    return root


@pytest.mark.ray
def test_asha_stops_trials_early_leaves_nothing_behind_and_the_best_recipe_trains(root: Path, tmp_path: Path) -> None:
    import ray
    from ray.util.state import list_actors

    # this cluster, though there may be others on the machine
    here = ray.get_runtime_context().gcs_address
    before = {actor.actor_id for actor in list_actors(here, limit=1000)}
    # a rate that is far too low lags from the first validation on
    space = {LR: {"grid": [1e-2, 1e-7, 1e-8, 1e-9]}, "training.seed": {"grid": [0, 1]}}
    settings = {"directory": str(tmp_path / "sweep"), "space": space, "trials": 8}
    done = sweep(parse_recipe(values(root, training={"epochs": 30}, **settings)))
    assert len(done.trials) == 8
    assert {trial.state for trial in done.trials} == {"finished", "stopped"}
    assert min(trial.epochs for trial in done.trials if trial.state == "stopped") < 30
    assert done.best.values[LR] == 1e-2

    assert {group["state"] for group in ray.util.placement_group_table().values()} <= {"REMOVED"}
    actors = [actor for actor in list_actors(here, detail=True, limit=1000) if actor.actor_id not in before]
    assert len(actors) >= 8
    assert {actor.state for actor in actors} == {"DEAD"}
    assert not any(alive(actor.pid) for actor in actors)

    trained = train(load_recipe(done.url))
    assert trained.best["score"] >= done.best.score - 1e-4


def alive(process: int) -> bool:
    """Whether a process that is ending still lives after a while."""
    try:
        place = os.pidfd_open(process)
    except ProcessLookupError:
        return False
    gone = select.poll()
    gone.register(place, select.POLLIN)
    ended = gone.poll(60_000)
    os.close(place)
    return not ended


@pytest.mark.ray
def test_a_trial_that_diverges_stops_no_other_and_what_ended_is_not_done_again(root: Path, tmp_path: Path) -> None:
    def run(trials: int) -> list[tuple[int, str, int]]:
        space = {LR: {"grid": [1e30, 1e-2, 1e-3]}}
        training = {"loss": {"name": "mse"}}
        settings = {"directory": str(tmp_path / "sweep"), "space": space, "trials": trials, "stopping": "none"}
        done = sweep(parse_recipe(values(root, training=training, **settings)))
        assert "loss is" in next(trial.cause for trial in done.trials if trial.number == 0)
        return sorted((trial.number, trial.state, trial.epochs) for trial in done.trials)

    assert run(2) == [(0, "failed", 0), (1, "finished", 2)]
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "sweep" / "trials").rglob("*") if path.is_file()}
    assert run(3) == [(0, "failed", 0), (1, "finished", 2), (2, "finished", 2)]
    assert {path: path.stat().st_mtime_ns for path in files} == files
