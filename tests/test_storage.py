import os
import resource
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leapray import storage
from leapray.errors import UserError


def write_half(url: str) -> None:
    with storage.atomic_file(url) as file:
        file.write(b"half")
        raise RuntimeError


def test_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "file.bin"
    storage.write_bytes(str(target), b"old")
    with pytest.raises(RuntimeError):
        write_half(str(target))
    assert target.read_bytes() == b"old"
    assert [path.name for path in target.parent.iterdir()] == ["file.bin"]


def test_an_object_store_shows_a_file_only_when_it_is_whole() -> None:
    url = "memory://bucket/file.bin"
    with pytest.raises(RuntimeError):
        write_half(url)
    assert not storage.exists(url)
    storage.write_bytes(url, b"whole")
    assert storage.read_bytes(url) == b"whole"


def test_listing_is_sorted_and_passes_over_leftovers(tmp_path: Path) -> None:
    for name in ("b.nc", "a/z.nc", ".tmp-1-b.nc", "c.txt"):
        storage.write_bytes(str(tmp_path / name), b"")
    assert storage.list_files(str(tmp_path), ".nc") == [str(tmp_path / "a/z.nc"), str(tmp_path / "b.nc")]


def test_numbers_keep_every_bit_and_nan_is_refused(tmp_path: Path) -> None:
    values = [1e-51, 0.1, -4.9406564584124654e-324]
    storage.write_json(str(tmp_path / "x.json"), values)
    assert storage.read_json(str(tmp_path / "x.json")) == values
    with pytest.raises(ValueError, match="JSON compliant"):
        storage.write_json(str(tmp_path / "x.json"), [float("nan")])


@pytest.mark.parametrize(
    ("url", "sentence"),
    [("/nowhere/at/all.json", "/nowhere/at/all.json: no such file"), ("nope://x/y", "nope://x/y: Protocol not known: nope")],
)
def test_what_is_not_there_is_named(url: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        storage.read_bytes(url)


def test_broken_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(UserError, match=r"x\.json: not valid json"):
        storage.read_json(str(tmp_path / "x.json"))


@pytest.mark.parametrize(
    ("destination", "inside"), [("a", True), ("a/b", True), ("b/../a/c", True), ("ab", False), ("b", False), ("a/../b", False)]
)
def test_a_destination_within_what_is_read_is_refused(tmp_path: Path, destination: str, inside: bool) -> None:
    with pytest.raises(UserError, match="is read for it") if inside else nullcontext():
        storage.require_outside(f"{tmp_path}/{destination}", str(tmp_path / "a"))


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/x\.json: cannot be written, for \S+/file is a file"):
        storage.write_json(str(tmp_path / "file" / "x.json"), {})


def test_a_fingerprint_follows_names_and_content(tmp_path: Path) -> None:
    one, other = str(tmp_path / "one"), str(tmp_path / "other")
    storage.write_bytes(one, b"a")
    storage.write_bytes(other, b"a")
    before = storage.fingerprint(one, other)
    assert storage.fingerprint(one, other) == before != storage.fingerprint(one)
    assert storage.fingerprint_below(str(tmp_path)) == before
    storage.write_bytes(other, b"bb")
    assert storage.fingerprint(one, other) == storage.fingerprint_below(str(tmp_path)) != before


def test_leftovers_of_killed_writers_go_with_the_next_write_of_the_same_file(tmp_path: Path) -> None:
    stale, living, other = (tmp_path / f".tmp-{name}" for name in ("0-file.bin", "1-file.bin", "0-other.bin"))
    for path in (stale, living, other):
        path.write_bytes(b"half")
    os.utime(stale, (0, 0))
    os.utime(other, (0, 0))
    ahead = time.time() + 60
    os.utime(living, (ahead, ahead))
    storage.write_bytes(str(tmp_path / "file.bin"), b"whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".tmp-0-other.bin", ".tmp-1-file.bin", "file.bin"]


@pytest.fixture
def small_disk() -> Iterator[None]:
    """No file may grow beyond 64 KiB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("small_disk")
def test_a_disk_without_room_is_named_also_through_pyarrow(tmp_path: Path) -> None:
    url = str(tmp_path / "file.bin")
    with pytest.raises(UserError, match=rf"{url}: cannot be written, {tmp_path} is full \("):
        storage.write_bytes(url, bytes(2**17))
    with pytest.raises(UserError, match=rf"{url}: cannot be written, {tmp_path} is full \("), storage.atomic_file(url) as file:
        pq.write_table(pa.table({"x": np.random.default_rng(0).normal(size=2**15)}), file)
    with pytest.raises(UserError, match=r"memory://bucket/full: cannot be written, .* is full \("):
        storage.write_bytes("memory://bucket/full", bytes(2**17))
    assert list(tmp_path.iterdir()) == []
    assert not storage.exists("memory://bucket/full")


def test_an_error_of_the_block_is_not_taken_for_one_of_the_disk(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), storage.atomic_file(str(tmp_path / "file.bin")):
        (tmp_path / "absent").read_bytes()


def test_sizes_come_with_the_listing(tmp_path: Path) -> None:
    for name, content in (("b.nc", b"22"), ("a/z.nc", b"1"), (".tmp-1-b.nc", b"333"), ("c.txt", b"")):
        storage.write_bytes(str(tmp_path / name), content)
    assert list(storage.list_sizes(str(tmp_path), ".nc").items()) == [(str(tmp_path / "a/z.nc"), 1), (str(tmp_path / "b.nc"), 2)]
    assert storage.list_sizes(str(tmp_path / "b.nc")) == {str(tmp_path / "b.nc"): 2}
    assert storage.list_sizes(str(tmp_path / "absent")) == {}
    assert storage.list_folder(str(tmp_path)) == (
        {str(tmp_path / n): s for n, s in (("b.nc", 2), (".tmp-1-b.nc", 3), ("c.txt", 0))},
        [str(tmp_path / "a")],
    )


def test_a_directory_that_may_not_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "closed").mkdir()
    listed = os.scandir

    def scandir(path: str) -> Any:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UserError, match=rf"{tmp_path}/closed: cannot be listed \(Permission denied\)"):
        storage.list_files(str(tmp_path))


def test_a_copy_has_the_same_fingerprint_and_a_changed_one_another(tmp_path: Path) -> None:
    content = np.random.default_rng(0).bytes(3 * 2**20)
    one = tmp_path / "one" / "file"
    storage.write_bytes(str(one), content)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    os.utime(tmp_path / "two" / "file", (0, 0))
    before = storage.fingerprint(str(one))
    assert storage.fingerprint(str(tmp_path / "two" / "file")) == before
    for changed in (content[:-1] + bytes([content[-1] ^ 1]), bytes([content[0] ^ 1]) + content[1:], content[:-1]):
        one.write_bytes(changed)
        assert storage.fingerprint(str(one)) != before


@given(st.binary(max_size=300), st.integers(0, 299), st.integers(1, 255))
def test_any_change_of_a_small_file_shows_in_its_fingerprint(content: bytes, at: int, flip: int) -> None:
    url = "memory://prints/file"
    storage.write_bytes(url, content)
    before = storage.fingerprint(url)
    changed = content + b"x" if at >= len(content) else content[:at] + bytes([content[at] ^ flip]) + content[at + 1 :]
    storage.write_bytes(url, changed)
    assert storage.fingerprint(url) != before


@pytest.mark.parametrize(("url", "extra"), [("gs://bucket/x", "gs"), ("hf://datasets/LEAP/x", "hf")])
def test_a_missing_extra_is_named(url: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*args: object, **options: object) -> None:
        raise ImportError

    monkeypatch.setattr(storage.urls, "url_to_fs", absent)
    with pytest.raises(UserError, match=rf"{url}: needs an extra, pip install 'leapray\[{extra}\]'"):
        storage.exists(url)


def test_marks_follow_content_and_come_with_the_listing(tmp_path: Path) -> None:
    for name in ("a/x.nc", "b.nc", "c.txt"):
        storage.write_bytes(str(tmp_path / name), b"1")
    before = storage.list_data(str(tmp_path), lambda name: name.endswith(".nc")).marks
    assert list(before) == storage.list_files(str(tmp_path), ".nc")
    assert storage.list_data(str(tmp_path), lambda name: name.endswith(".nc")).marks == before
    (tmp_path / "b.nc").write_bytes(b"2")
    os.utime(tmp_path / "b.nc", (5, 5))
    (tmp_path / "a/x.nc").write_bytes(b"11")
    after = storage.list_data(str(tmp_path), lambda name: name.endswith(".nc")).marks
    assert all(after[name] != mark for name, mark in before.items())


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(os.fstat(number).st_size) or fsync(number))
    target = tmp_path / "file"
    with storage.atomic_file(str(target)) as file:
        file.write(b"content")
    assert synced == [7]


@pytest.mark.parametrize(
    ("url", "same"),
    [
        ("s3a://bucket/x/", "s3://bucket/x"),
        ("s3://bucket/x", "s3://bucket/x"),
        ("http://host/x/", "http://host/x"),
        ("file:///some/where/", "/some/where"),
        ("/some/../where", "/where"),
    ],
)
def test_a_place_has_one_name(url: str, same: str) -> None:
    assert storage.absolute(url) == same


def test_a_listing_begins_with_the_absolute_name() -> None:
    storage.write_bytes("memory://named/a/b.nc", b"")
    (found,) = storage.list_files("memory://named", ".nc")
    assert found == storage.join(storage.absolute("memory://named/"), "a/b.nc")


def test_no_file_system_is_made_of_a_url_with_credentials() -> None:
    with pytest.raises(UserError, match=r"a URL s3:// carries .*; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY") as raised:
        storage.exists("s3://key:sec/ret@bucket/file")
    assert "ret" not in str(raised.value).replace("SECRET", "")


@given(st.lists(st.lists(st.sampled_from(["a", "b", "a-1", "b-a", "model"]), min_size=1, max_size=3), min_size=1, max_size=6))
def test_short_names_are_told_apart(parts: list[list[str]]) -> None:
    names = storage.short_names(["/".join(part) for part in parts])
    assert len(set(names)) == len(parts)


def test_short_names_are_the_ends_of_places() -> None:
    assert storage.short_names(["runs/swa/model", "runs/ema/model/"]) == ["swa", "ema"]
    assert storage.short_names(["x/a", "y/a", "b"]) == ["x-a", "y-a", "b"]


class _Unsized(BaseHTTPRequestHandler):
    """Answers without saying how long the answer is."""

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(b'{"a": 1}')

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_a_file_of_a_server_that_tells_no_size_is_read_up_to_the_limit():
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Unsized)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/some.json"
    try:
        assert storage.read_json(url) == {"a": 1}
        with pytest.raises(UserError, match="expected 5 at the most"):
            storage.read_bytes(url, 5)
    finally:
        server.shutdown()
        server.server_close()


def test_a_url_for_what_takes_only_ascii() -> None:
    assert storage.ascii_url("s3://b/a%20 b#") == "s3://b/a%20 b#"
    assert storage.ascii_url("/läufe/中/\udce4") == "/l%C3%A4ufe/%E4%B8%AD/%E4"


def test_a_name_that_the_encoding_of_the_locale_lacks_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def encode(path: str) -> bytes:
        return path.encode("ascii")

    monkeypatch.setattr(os, "fsencode", encode)
    with pytest.raises(UserError, match=r"^/läufe: has letters .*LC_ALL"):
        storage.exists("/läufe")


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "file.parquet"), b"")
    storage.require_folder(str(tmp_path))
    storage.require_folder(str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"file\.parquet: is a file"):
        storage.require_folder(str(tmp_path / "file.parquet"))
