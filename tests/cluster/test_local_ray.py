"""What keeps Ray from being started is said in one sentence with its remedy, before the start or after a limit of time."""

import os
import shutil
import socket
import stat
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from leapray.cluster import preflight
from leapray.errors import UserError

PATHS = ("RAY_TMPDIR", "TMPDIR", "XDG_RUNTIME_DIR")


@pytest.fixture(autouse=True)
def no_directory_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PATHS:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory whose path is short enough for sockets."""
    folder = Path(f"/tmp/lr{os.getpid()}")
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


def looked(before: str, prefix: tuple[str, ...] = ()) -> list[str]:
    """The obstacles that another process finds once it has run some lines."""
    program = f"import resource\n{textwrap.dedent(before)}\nfrom leapray.cluster import preflight\nprint('\\n'.join(preflight.obstacles()))"
    done = subprocess.run([*prefix, sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_nothing_is_in_the_way_here() -> None:
    assert list(preflight.obstacles()) == []


def test_limits_of_the_shell_are_each_named_with_their_remedy() -> None:
    found = looked("""
        for limit, most in (("NOFILE", 64), ("FSIZE", 1 << 20), ("AS", 1 << 32)):
            resource.setrlimit(getattr(resource, f"RLIMIT_{limit}"), (most, most))
    """)
    remedies = ("ulimit -n 65536", "ulimit -f unlimited", "ulimit -v unlimited")
    assert [remedy in line for remedy, line in zip(remedies, found, strict=True)] == [True] * 3


def test_too_few_threads_of_a_user_or_a_container(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import resource

    limits = {resource.RLIMIT_NPROC: (600, 600)}
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    monkeypatch.setattr(resource, "getrlimit", lambda limit: limits.get(limit, unlimited))
    monkeypatch.setattr(preflight, "_threads_of_user", lambda: 550)
    uid = 1000
    monkeypatch.setattr(preflight.os, "getuid", lambda: uid)
    assert ["ulimit -u" in line for line in preflight._limits()] == [True]
    # the superuser is not held to the limit
    uid = 0
    assert list(preflight._limits()) == []
    most, use = tmp_path / "max", tmp_path / "current"
    monkeypatch.setattr(preflight, "_TASKS", ((str(most), str(use)),))
    use.write_text("40\n")
    for text, expected in (("256\n", [True]), ("max\n", []), ("32768\n", [])):
        most.write_text(text)
        assert ["--pids-limit" in line for line in preflight._limits()] == expected


def test_a_machine_without_loopback() -> None:
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-n", "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs a namespace of the network (unshare -n)")
    (found,) = looked("", (unshare, "-n"))
    assert "127.0.0.1" in found
    assert "ip link set lo up" in found


def test_a_short_temporary_directory_is_taken_and_is_closed_to_others(monkeypatch: pytest.MonkeyPatch, short: Path) -> None:
    monkeypatch.setenv("TMPDIR", str(short))
    folder = preflight.ray_folder()
    assert (folder.spill, folder.temporary) == (None, None)
    own = Path(folder.path).parent
    assert own.parent == short
    assert stat.S_IMODE(own.stat().st_mode) == 0o700
    assert list(own.iterdir()) == []


@pytest.mark.parametrize("name", ["x" * 80, "läufe"])
def test_a_long_or_foreign_temporary_directory_keeps_the_objects_it_can(monkeypatch: pytest.MonkeyPatch, short: Path, name: str) -> None:
    asked = short / name
    asked.mkdir()
    monkeypatch.setenv("TMPDIR", str(asked))
    folder = preflight.ray_folder()
    path = f"{folder.path}/session_2026-11-30_00-44-46_598582_4194304/sockets/plasma_store"
    assert path.isascii()
    assert len(path) <= 107
    assert folder.temporary == str(Path(folder.path).parent)
    assert folder.spill == (f"{asked}/leapray-{os.getuid()}" if name.isascii() else None)


def test_a_directory_that_is_not_ones_own_is_passed_over(monkeypatch: pytest.MonkeyPatch, short: Path) -> None:
    (short / f"leapray-{os.getuid()}").symlink_to("/tmp")
    monkeypatch.setenv("RAY_TMPDIR", str(short))
    assert not preflight.ray_folder().path.startswith(str(short))


def test_where_no_directory_can_be_used_each_is_named_with_its_reason(monkeypatch: pytest.MonkeyPatch, short: Path) -> None:
    taken = short / "file"
    taken.touch()
    monkeypatch.setenv("TMPDIR", str(taken))

    def full(file: int, start: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(preflight.os, "posix_fallocate", full)
    with pytest.raises(UserError) as refused:
        preflight.ray_folder()
    said = str(refused.value)
    assert f"{taken} cannot be written (Not a directory)" in said
    assert "/tmp has less than 16 MB free" in said
    assert "set RAY_TMPDIR" in said


def test_a_file_system_without_sockets_is_passed_over(monkeypatch: pytest.MonkeyPatch, short: Path) -> None:
    class Refusing(socket.socket):
        def bind(self, address: object) -> None:
            if str(address).startswith(str(short)):
                raise OSError(1, "Operation not permitted")
            super().bind(address)  # type: ignore[arg-type]

    monkeypatch.setattr(preflight.socket, "socket", Refusing)
    monkeypatch.setenv("RAY_TMPDIR", str(short))
    assert not preflight.ray_folder().path.startswith(str(short))


STARTS = """
    import os, sys, time
    from leapray.cluster import local_ray
    from leapray.errors import UserError

    def sleeps():
        import subprocess
        global child
        child = subprocess.Popen(["sleep", "600"])
        os.write(2, b"native chatter")
        time.sleep(600)

    try:
        local_ray.limited(sleeps, "Ray is late")
    except UserError as error:
        print(error)
        child.wait()
        print("child", -child.returncode)
    sys.stdout.flush()
    local_ray.limited(lambda: print("begun", flush=True), "Ray is dead at first")
    os.environ["LEAPRAY_RAY_START_SECONDS"] = "600"
    local_ray.limited(lambda: os._exit(1), "Ray is dead")
"""


def test_a_start_that_takes_too_long_is_ended_and_one_that_ends_the_process_has_a_last_word() -> None:
    environment = os.environ | {"LEAPRAY_RAY_START_SECONDS": "0.5"}
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(STARTS)], env=environment, capture_output=True, text=True, check=False)
    late, child, begun = done.stdout.splitlines()
    assert late.startswith("Ray is late; it was given 0.5 s")
    assert "LEAPRAY_RAY_START_SECONDS" in late
    assert (child, begun) == ("child 9", "begun")
    assert done.stderr == "error: Ray is dead\n"


HANGS = """
    import signal, time
    from leapray.cluster import local_ray as ray_start

    ray_start._GRACE_SECONDS = 0.1

    def hangs():
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
        time.sleep(600)

    ray_start.limited(hangs, "Ray hangs")
"""


def test_a_start_that_cannot_be_interrupted_has_a_last_word_too() -> None:
    environment = os.environ | {"LEAPRAY_RAY_START_SECONDS": "0.1"}
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(HANGS)], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "error: Ray hangs\n")


@pytest.mark.parametrize("given", ["soon", "0", "nan"])
def test_a_limit_that_is_no_number_of_seconds(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    from leapray.cluster import local_ray

    monkeypatch.setenv(local_ray.SECONDS, given)
    with pytest.raises(UserError, match=f"^{local_ray.SECONDS} is {given}, expected a number of seconds"):
        local_ray.limited(lambda: None, "late")


LONG = """
    import tempfile
    import ray
    from leapray.cluster import session

    session.start()

    def look():
        import leapray
        return tempfile.gettempdir()

    print(ray.get(ray.remote(look).remote()), tempfile.gettempdir(), sep="\\n")
"""


@pytest.mark.ray
def test_ray_starts_with_a_long_temporary_directory_which_work_still_uses(short: Path) -> None:
    asked = short / ("x" * 80)
    asked.mkdir()
    environment = os.environ | {"TMPDIR": str(asked)}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(LONG)], env=environment, cwd=short, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [str(asked)] * 2


def test_names_that_are_not_utf_8_are_refused_before_ray_meets_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["leapray", "predict", "/l\udce4uf"])
    (found,) = preflight.obstacles()
    assert found.startswith(r"/l\udce4uf: has letters that are not UTF-8")
    with pytest.raises(UserError, match="LC_ALL"):
        preflight.refuse_names()
    monkeypatch.setattr(sys, "argv", ["leapray"])
    here = tmp_path / "l\udce4uf"
    here.mkdir()
    monkeypatch.chdir(here)
    assert ["l\\udce4uf: has letters" in line for line in preflight.obstacles()] == [True]
