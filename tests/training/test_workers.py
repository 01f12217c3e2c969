"""How long a training is taken up again, without Ray's processes."""

from pathlib import Path

import pytest
from ray.exceptions import RayActorError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from leapray.errors import PassingError, UserError
from leapray.training import checkpoint
from leapray.training.run import Run
from leapray.training.workers import Persistence

GONE = WorkerHealthCheckFailedError("no answer", RayActorError("actor", "its node was taken away", False, True))
DIED = WorkerHealthCheckFailedError("no answer", RayActorError("actor", "killed", False, False))


def test_five_deaths_without_a_new_checkpoint_end_a_training(tmp_path: Path) -> None:
    run = Run(str(tmp_path))
    persistence = Persistence(run)
    for step in (0, 10):
        if step:
            checkpoint.save(checkpoint.step_url(run.checkpoints, step), {})
        for _ in range(4):
            persistence.after_exception(None, {0: DIED})
    with pytest.raises(WorkerHealthCheckFailedError, match="killed"):
        persistence.after_exception(None, {0: DIED})


def test_deaths_of_which_notice_was_given_do_not_count_however_often_they_are_told_of(tmp_path: Path) -> None:
    persistence = Persistence(Run(str(tmp_path)))
    for _ in range(20):
        persistence.after_exception(None, {0: RuntimeError("connection closed by peer"), 1: GONE})


def test_a_store_that_does_not_answer_is_a_death_like_others(tmp_path: Path) -> None:
    persistence, away = Persistence(Run(str(tmp_path))), PassingError("s3://bucket/run: still fails after 6 attempts (503)")
    for _ in range(4):
        persistence.after_exception(None, {0: away})
    with pytest.raises(PassingError, match="still fails"):
        persistence.after_exception(None, {0: away})


def test_a_mistake_ends_a_training_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="too few rows"):
        Persistence(Run(str(tmp_path))).after_exception(None, {0: GONE, 1: UserError("too few rows")})
