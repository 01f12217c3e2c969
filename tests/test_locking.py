"""One process at a time in a directory, on disk and in a store; one that was killed stands in nobody's way."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from leapray import faults, storage
from leapray.errors import UserError
from leapray.storage import locking
from leapray.storage.writing import create_bytes
from tests.s3_server import Endpoint

HOLDS = """
import sys
from leapray import storage
with storage.locked(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(params=["disk", "s3", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A directory that is not there yet."""
    if request.param == "s3":
        return f"{request.getfixturevalue('bucket')}/run"
    return str(tmp_path / "run") if request.param == "disk" else f"memory://{tmp_path.name}/run"


def lock_of(place: str) -> str:
    return storage.join(place, ".tmp-lock")


def change(place: str, **values: object) -> None:
    """Let another process write the file."""
    lock = lock_of(place)
    storage.write_json(lock, storage.read_json(lock) | values)


def begin(place: str) -> subprocess.Popen[str]:
    """Another process that holds a directory."""
    process = subprocess.Popen([sys.executable, "-c", HOLDS, place], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def kill(process: subprocess.Popen[str], *, waited_for: bool = True) -> None:
    process.send_signal(signal.SIGKILL)
    if waited_for:
        process.communicate()
    else:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)


def test_a_directory_is_held_and_given_back_without_a_trace(place: str) -> None:
    with storage.locked(place) as token:
        assert storage.exists(lock_of(place))
        # whoever looks at the directory sees nothing in it
        assert storage.is_empty(place)
        storage.require_lock(place, token)
    assert not storage.exists(lock_of(place))
    with storage.locked(place):
        storage.write_bytes(storage.join(place, "result"), b"")
    assert [name.rsplit("/", 1)[-1] for name in storage.list_files(place)] == ["result"]


def test_a_directory_that_was_there_stays(tmp_path: Path) -> None:
    with storage.locked(str(tmp_path / "new" / "run")):
        pass
    assert not (tmp_path / "new" / "run").exists()
    with storage.locked(str(tmp_path)):
        pass
    assert tmp_path.exists()


def test_a_directory_that_another_process_holds_is_refused(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # each look waits for the beat that is to be seen
    def until_it_beats(seconds: float) -> None:
        before = storage.read_bytes(lock_of(place))
        while storage.read_bytes(lock_of(place)) == before:
            time.sleep(seconds)

    monkeypatch.setattr(locking, "BEAT_SECONDS", 0.001)
    monkeypatch.setattr(faults, "sleep", until_it_beats)
    notices: list[str] = []
    with storage.locked(place) as token:
        with pytest.raises(UserError, match=rf"run: process {os.getpid()} on .* works in it now"), storage.locked(place, notices.append):
            pass
        storage.require_lock(place, token)
    assert len(notices) == 1


@pytest.mark.parametrize("waited_for", [True, False])
@pytest.mark.parametrize("place", ["disk", "s3"], indirect=True)
def test_what_a_killed_process_held_is_taken_over_at_once(place: str, waits: list[float], waited_for: bool) -> None:
    process = begin(place)
    kill(process, waited_for=waited_for)
    assert storage.exists(lock_of(place))
    with storage.locked(place) as token:
        storage.require_lock(place, token)
    process.communicate()
    assert waits == []


def test_so_is_what_a_process_held_whose_number_was_given_again(place: str, waits: list[float]) -> None:
    with storage.locked(place):
        kept = storage.read_bytes(lock_of(place))
    storage.write_json(lock_of(place), json.loads(kept) | {"began": "1"})
    with storage.locked(place):
        pass
    assert waits == []


@pytest.mark.parametrize("left", [b"", b"{}", b"other"])
def test_what_no_process_is_known_to_hold_is_taken_over_after_a_while(tmp_path: Path, waits: list[float], left: bytes) -> None:
    (tmp_path / ".tmp-lock").write_bytes(left)
    with storage.locked(str(tmp_path)):
        pass
    assert sum(waits) == 60


def test_what_a_process_of_another_machine_held_is_taken_over_after_a_while(place: str, waits: list[float]) -> None:
    with storage.locked(place):
        kept = storage.read_bytes(lock_of(place))
    storage.write_json(lock_of(place), json.loads(kept) | {"machine": "another", "host": "node-7", "process": 12})
    notices: list[str] = []
    with storage.locked(place, notices.append) as token:
        storage.require_lock(place, token)
    assert sum(waits) == 60
    assert len(notices) == 1
    assert "process 12 on node-7" in notices[0]


def test_a_process_that_lost_a_directory_is_told_and_leaves_it_to_the_other(place: str) -> None:
    with storage.locked(place) as token:
        change(place, token="other")
        with pytest.raises(UserError, match="run: another process has taken it over"):
            storage.require_lock(place, token)
    assert storage.read_json(lock_of(place))["token"] == "other"


def test_only_one_of_many_creates_a_file(place: str) -> None:
    def create(number: int) -> bool:
        return create_bytes(storage.join(place, "file"), str(number).encode())

    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(create, range(8)))
    if not place.startswith("memory"):
        assert sum(made) == 1
        assert storage.read_bytes(storage.join(place, "file")) == str(made.index(True)).encode()
    assert not create(9)


def test_a_file_whose_answer_was_lost_is_ones_own(bucket: str, waits: list[float], s3: Endpoint) -> None:
    s3.disturb("lost", method="PUT", path=".tmp-lock")
    with storage.locked(f"{bucket}/run") as token:
        assert [method for method, path in s3.requests if ".tmp-lock" in path].count("PUT") > 1
        storage.require_lock(f"{bucket}/run", token)


def test_a_store_without_conditional_writes(bucket: str, s3: Endpoint) -> None:
    for content, created in ((b"1", True), (b"2", False)):
        s3.answer(501, "NotImplemented", method="PUT", path="file")
        assert create_bytes(f"{bucket}/file", content) is created
    assert storage.read_bytes(f"{bucket}/file") == b"1"
