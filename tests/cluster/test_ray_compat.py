"""What leapray takes from inside Ray is still there, and still means the same: one test for each use."""

import importlib
import inspect
import io
import logging
import mmap
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from leapray.cluster import preflight, ray_compat

READ_BY = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "ray.train.v2._internal.constants",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "ray.train.v2._internal.constants",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "ray.data.context",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "ray._private.accelerators.accelerator",
    "RAY_CHDIR_TO_TRIAL_DIR": "ray.train.constants",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "ray.tune.execution.tune_controller",
    "TUNE_DISABLE_SIGINT_HANDLER": "ray.tune.tune",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "ray.tune.utils.callback",
    "RAY_AIR_NEW_OUTPUT": "ray.tune.experimental.output",
    "TUNE_FORCE_TRIAL_CLEANUP_S": "ray.tune.execution.tune_controller",
}
"""Switches, and the module of Ray that reads each."""
READ_IN_CPP = {"RAY_raylet_start_wait_time_s": b"raylet_start_wait_time_s", "RAY_BACKEND_LOG_LEVEL": b"RAY_BACKEND_LOG_LEVEL"}


def test_every_switch_is_listed_here() -> None:
    assert READ_BY.keys() | READ_IN_CPP.keys() == ray_compat.LOCAL_ENVIRONMENT.keys() | ray_compat.TUNE_ENVIRONMENT.keys()


@pytest.mark.parametrize("switch", READ_BY)
def test_ray_reads_the_switch(switch: str) -> None:
    assert f'"{switch}"' in inspect.getsource(importlib.import_module(READ_BY[switch]))


@pytest.mark.parametrize("switch", READ_IN_CPP)
def test_rays_native_part_reads_the_switch(switch: str) -> None:
    import ray._raylet

    with open(ray._raylet.__file__, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as library:
        assert library.find(READ_IN_CPP[switch]) > 0


def test_a_submitted_job_is_known_by_its_variable() -> None:
    from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR

    assert ray_compat.SUBMITTED == RAY_JOB_CONFIG_JSON_ENV_VAR


@pytest.mark.parametrize(("available", "shared"), [(8 << 30, 1 << 30), (64 << 30, 8 << 30), (64 << 30, 12 << 30), (2 << 40, 1 << 40)])
def test_the_object_store_has_the_size_that_ray_gives_it(available: int, shared: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private import utils

    monkeypatch.setattr(utils, "get_shared_memory_bytes", lambda: shared)
    assert ray_compat.store_bytes(available, shared) == utils.resolve_object_store_memory(available)


@pytest.mark.ray
def test_a_session_lies_in_the_given_folder_with_the_socket_and_the_logs_that_are_expected(ray_cluster: None) -> None:
    import ray

    folder = Path(preflight.ray_folder().path)
    # another Ray of this user may have begun after it
    session = Path(ray._private.worker._global_node.get_session_dir_path()).resolve()
    assert session.parent == folder
    socket = session / "sockets" / "plasma_store"
    assert socket.is_socket()
    assert len(str(socket)) <= len(f"{folder}{ray_compat.SOCKET}")
    assert [name for name in ray_compat.START_LOGS if not (session / "logs" / name).is_file()] == []


@pytest.mark.ray
def test_the_option_for_rays_folder_is_one_of_init(ray_cluster: None) -> None:
    import ray

    # the only other way to a folder, RAY_TMPDIR, is read once, as Ray is imported
    (option,) = ray_compat.folder_option("/tmp/x")
    with pytest.raises(RuntimeError, match="Unknown keyword"):
        ray.init(ignore_reinit_error=False, **{f"{option}_": "/tmp/x"})
    assert f'"{option}"' in inspect.getsource(ray.init)


def test_silence_keeps_rays_messages_out_of_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray.data
    from ray._private import worker

    monkeypatch.setattr(worker, "_worker_logs_enabled", True)
    message = {"lines": ["A worker died"], "pid": "raylet", "is_err": False, "ip": "127.0.0.1", "job": None}
    shown = io.StringIO()
    worker.print_worker_logs(message, shown)
    assert "A worker died" in shown.getvalue()
    handler = logging.StreamHandler(shown)
    logging.getLogger("ray.train").addHandler(handler)
    try:
        ray_compat.silence()
        shown.truncate(0)
        worker.print_worker_logs(message, shown)
        logging.getLogger("ray.train").error("a worker died")
    finally:
        logging.getLogger("ray.train").removeHandler(handler)
    assert shown.getvalue() == ""
    context = ray.data.DataContext.get_current()
    assert (context.enable_progress_bars, context.print_on_execution_start) == (False, False)


def test_a_head_that_adds_nodes_is_known_by_what_the_launchers_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.autoscaler._private import commands
    from ray.scripts import scripts

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KUBERAY_GEN_RAY_START_CMD", raising=False)
    assert not ray_compat.heads_autoscaler()
    (tmp_path / "ray_bootstrap_config.yaml").touch()
    assert ray_compat.heads_autoscaler()
    assert "~/ray_bootstrap_config.yaml" in inspect.getsource(commands.get_or_create_head_node) + inspect.getsource(commands)
    (tmp_path / "ray_bootstrap_config.yaml").unlink()
    monkeypatch.setenv("KUBERAY_GEN_RAY_START_CMD", "ray start --head --no-monitor")
    assert ray_compat.heads_autoscaler()
    assert "--no-monitor" in [option for parameter in scripts.start.params for option in parameter.opts]


def carriers() -> list[tuple[str, Any]]:
    from ray.exceptions import RayTaskError
    from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

    return [
        ("of a task", lambda mistake: RayTaskError("look", "Traceback", mistake)),
        ("of the controller", ControllerError),
        ("of a worker", lambda mistake: WorkerGroupError("workers failed", {0: ValueError("other"), 3: mistake})),
    ]


@pytest.mark.parametrize("index", range(3))
def test_the_exception_inside_one_of_rays_is_found(index: int) -> None:
    _, carried_by = carriers()[index]
    mistake = KeyError("x.nc")
    assert mistake in list(ray_compat.causes(carried_by(mistake)))


def test_a_worker_that_died_with_a_node_of_which_notice_was_given_is_known() -> None:
    from ray.exceptions import ActorDiedError, RayActorError
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

    taken, crashed = RayActorError(preempted=True), ActorDiedError()
    assert ray_compat.preempted(taken)
    assert ray_compat.preempted(WorkerHealthCheckFailedError("no answer", taken))
    assert not any(map(ray_compat.preempted, (crashed, WorkerHealthCheckFailedError("no answer", crashed), ValueError())))


def test_another_version_of_ray_is_known_by_the_error() -> None:
    import ray
    from ray._private.utils import check_version_info

    with pytest.raises(RuntimeError) as caught:
        check_version_info({"ray_version": f"{ray.__version__}.post1", "python_version": "3.11.0"}, "this process")
    assert ray_compat.other_version(caught.value)
    assert not ray_compat.other_version(RuntimeError("no route to host"))


@pytest.mark.ray
def test_a_head_answers_only_those_with_its_token(ray_cluster: None) -> None:
    import ray

    # a local Ray asks for the token of this user
    address = ray.get_runtime_context().gcs_address
    ask = f"import ray; ray.init(address={address!r}, log_to_driver=False); print('joined')"
    refused, joined = (
        subprocess.run([sys.executable, "-c", ask], env=env, capture_output=True, text=True, check=False)
        for env in (ray_compat.without_token(), os.environ | {"RAY_AUTH_MODE": "token"})
    )
    assert (refused.returncode == 0, joined.stdout.strip()) == (False, "joined")
    assert ray_compat.wants_token(RuntimeError(refused.stderr))


def test_the_command_for_a_notice_is_one_that_ray_has() -> None:
    from ray.core.generated import autoscaler_pb2
    from ray.scripts.scripts import cli

    program, command, *options = ray_compat.drain_command("127.0.0.1:6379", "ab" * 28, "taken", 100)
    assert shutil.which(program, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    context = cli.commands[command].make_context(command, list(options))
    assert context.params["deadline_remaining_seconds"] == 100
    assert autoscaler_pb2.DrainNodeReason.Value(context.params["reason"]) > 0


@pytest.mark.parametrize("rule", ["median", "asha"])
def test_a_scheduler_of_tune_compares_a_trial_with_those_it_was_shown(rule: str) -> None:
    from ray.tune.schedulers import AsyncHyperBandScheduler, MedianStoppingRule, TrialScheduler

    def decided(curves: list[list[float]]) -> str:
        at: dict[str, Any] = {"time_attr": "time", "metric": "score", "mode": "max"}
        scheduler = (
            MedianStoppingRule(**at, grace_period=1, min_samples_required=2, min_time_slice=float("inf"))
            if rule == "median"
            else AsyncHyperBandScheduler(**at, grace_period=1, max_t=9, reduction_factor=3)
        )
        ray_compat.show_earlier(scheduler, [[{"score": score, "time": time} for time, score in enumerate(curve, 1)] for curve in curves])
        trial = ray_compat._EarlierTrial(99)
        scheduler.on_trial_add(None, trial)
        return scheduler.on_trial_result(None, trial, {"score": 0.1, "time": 1})

    assert decided([]) == TrialScheduler.CONTINUE
    assert decided([[0.5, 0.6, 0.7], [0.6, 0.7], [0.7, 0.8]]) == TrialScheduler.STOP
