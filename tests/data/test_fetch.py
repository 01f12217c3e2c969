"""Fetching: what is chosen, what is copied again, and how it keeps to limits; from local folders, web servers, S3 and fake hubs."""

import re
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.dirfs import DirFileSystem

from leapray import cli, faults, storage
from leapray.climsim.calendar import Month, file_name
from leapray.climsim.pairs import find_pairs
from leapray.console import scaled
from leapray.data import fetch as rooms
from leapray.data import origin
from leapray.data.fetch import Fetched, fetch
from leapray.data.flat import Selection
from leapray.data.origin import Throttle
from leapray.errors import UserError
from leapray.storage import walking
from tests.s3_server import Endpoint
from tests.web_server import Web

FEBRUARY, MARCH, APRIL = Month(1, 2), Month(1, 3), Month(1, 4)
STEPS = 10


def content(name: str) -> bytes:
    return name.encode() * 50


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Pairs of three months in the published layout, and what stands beside them."""
    root = tmp_path / "source"
    names = [
        f"train/{month}/{file_name(stream, month.first_step + step)}"
        for month in (FEBRUARY, MARCH, APRIL)
        for step in range(STEPS)
        for stream in ("mli", "mlo")
    ]
    for name in [*names, "README.md", "grid_info.nc", "flat/low-res.0001-02.parquet", "flat/low-res.0001-05.parquet", "flat/test.csv"]:
        storage.write_bytes(str(root / name), content(name))
    return root


def copied(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def chosen(source: Path, pattern: str) -> dict[str, bytes]:
    found = {name: value for name, value in copied(source).items() if re.search(pattern, name)}
    assert found
    return found


@pytest.mark.parametrize(("stride", "phase"), [(1, 0), (3, 0), (3, 2), (7, 4)])
def test_a_stride_picks_the_pairs_that_convert_would(source: Path, tmp_path: Path, stride: int, phase: int) -> None:
    fetch(str(source / "train"), str(tmp_path / "d"), Selection(FEBRUARY, APRIL, stride, phase))
    pairs = find_pairs(str(source), start=FEBRUARY, stop=APRIL, stride=stride, phase=phase)
    expected = {str(Path(path).relative_to(source / "train")) for pair in pairs for path in (pair.mli, pair.mlo)}
    assert copied(tmp_path / "d") == {name: content(f"train/{name}") for name in expected}


def test_flat_files_are_chosen_by_the_month_in_their_names(source: Path, tmp_path: Path) -> None:
    fetch(str(source / "flat"), str(tmp_path / "may"), Selection(start=MARCH))
    assert list(copied(tmp_path / "may")) == ["low-res.0001-05.parquet"]
    fetch(str(source / "flat"), str(tmp_path / "all"), Selection())
    assert copied(tmp_path / "all") == copied(source / "flat")


def test_folders_of_other_months_are_not_listed(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed: list[str] = []
    entries = walking.entries
    monkeypatch.setattr(walking, "entries", lambda url: listed.append(Path(url).name) or entries(url))
    fetch(str(source), str(tmp_path / "d"), Selection(MARCH, APRIL))
    assert listed == ["source", "flat", "train", "0001-03", "d"]
    assert copied(tmp_path / "d") == chosen(source, "train/0001-03")


def test_only_what_is_missing_or_of_another_size_is_copied_again(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dest = tmp_path / "d"
    assert fetch(str(source), str(dest), Selection()).present_files == 0
    names = sorted(copied(dest))
    (dest / names[0]).unlink()
    (dest / names[1]).write_bytes(b"short")
    read: list[str] = []
    read_range = storage.read_range
    monkeypatch.setattr(storage, "read_range", lambda url, *rest: read.append(url) or read_range(url, *rest))
    done = fetch(str(source), str(dest), Selection())
    assert sorted(read) == [str(source / name) for name in names[:2]]
    size = sum(len(content(name)) for name in names[:2])
    assert done == Fetched(2, size, len(names) - 2, sum(len(content(name)) for name in names) - size)
    assert copied(dest) == chosen(source, r"E3SM|\.parquet|\.csv")


def test_large_files_come_in_ranges(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(origin, "_RANGE", 1000)
    fetch(str(source), str(tmp_path / "d"), Selection(FEBRUARY, MARCH))
    assert copied(tmp_path / "d") == chosen(source, "0001-02")


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self.now = 100.0
        self.lock = threading.Lock()

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        with self.lock:
            self.now += seconds


def test_the_rate_bounds_all_threads_together(source: Path, tmp_path: Path) -> None:
    clock = Clock()
    done = fetch(str(source), str(tmp_path / "d"), Selection(), parallel=8, throttle=Throttle(1000, clock, clock.sleep))
    largest = max(len(value) for value in copied(tmp_path / "d").values())
    assert clock.now - 100 >= (done.bytes - largest) / 1000


def test_a_pause_holds_whoever_asks_next() -> None:
    clock = Clock()
    throttle = Throttle(None, clock, clock.sleep)
    throttle.take(10)
    assert clock.now == 100
    throttle.pause(30)
    assert clock.now == 130
    throttle._resumed = 150
    throttle.take(10)
    assert clock.now == 150


def test_the_first_failure_stops_the_other_copies_even_those_that_pause(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, paused = threading.Event(), threading.Event()

    def read_range(url: str, start: int, stop: int, pause: Any) -> bytes:
        if "mli" in url:
            reading.wait()
            paused.set()
            pause(3600)
        reading.set()
        paused.wait()
        raise UserError(f"{url}: access is denied")

    monkeypatch.setattr(storage, "read_range", read_range)
    with pytest.raises(UserError, match="access is denied"):
        fetch(str(source / "train/0001-02"), str(tmp_path / "d"), Selection(), parallel=20)
    assert copied(tmp_path / "d") == {}


@pytest.fixture(params=[True, False], ids=["ranges", "no ranges"])
def web(source: Path, request: pytest.FixtureRequest) -> Iterator[Web]:
    server = Web(source, request.param)
    yield server
    server.shutdown()
    server.server_close()


def test_a_web_servers_listing_is_copied_through_429_and_truncation(
    web: Web, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(origin, "_RANGE", 1500)
    clock = Clock()
    web.faults |= {"refuse": 2, "cut": 2}
    dest, months = tmp_path / "d", Selection(FEBRUARY, APRIL, stride=2)
    fetch(f"{web.url}/train/", str(dest), months, throttle=Throttle(None, clock, clock.sleep))
    assert clock.now >= 120
    expected = find_pairs(str(source), start=FEBRUARY, stop=APRIL, stride=2)
    assert len(copied(dest)) == 2 * len(expected)
    assert all(value == content(f"train/{name}") for name, value in copied(dest).items())
    assert not any("0001-04" in path for path in web.gets[1:])

    lost = sorted(dest.rglob("*.nc"))[3]
    lost.unlink()
    web.gets.clear()
    assert fetch(f"{web.url}/train", str(dest), months).files == 1
    assert {path for path in web.gets if path.endswith(".nc")} == {f"/train/{lost.relative_to(dest)}"}


def test_an_interrupted_copy_goes_on_with_what_is_missing(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_range, reads = storage.read_range, []

    def failing(url: str, *rest: Any) -> bytes:
        reads.append(url)
        if len(reads) > 7:
            raise KeyboardInterrupt
        return read_range(url, *rest)

    monkeypatch.setattr(storage, "read_range", failing)
    dest = tmp_path / "d"
    with pytest.raises(KeyboardInterrupt):
        fetch(str(source), str(dest), Selection(), parallel=1)
    there = copied(dest)
    assert there.items() <= copied(source).items()
    assert len(there) == 7
    monkeypatch.setattr(storage, "read_range", read_range)
    done = fetch(str(source), str(dest), Selection())
    assert done.present_files == 7
    assert copied(dest) == chosen(source, r"E3SM|\.parquet|\.csv")


def test_a_bucket_is_a_source_and_a_destination(s3: Endpoint, bucket: str, source: Path, tmp_path: Path, waits: list[float]) -> None:
    fetch(str(source), f"{bucket}/copy", Selection(FEBRUARY, MARCH))
    s3.answer(429, "TooManyRequests", times=2, method="GET", path="/copy/", Retry_After="9")
    s3.disturb("cut", times=2, method="GET", path="/copy/")
    clock = Clock()
    fetch(f"{bucket}/copy", str(tmp_path / "d"), Selection(), throttle=Throttle(None, clock, clock.sleep))
    assert copied(tmp_path / "d") == chosen(source, "0001-02")
    assert clock.now >= 109
    s3.calm()
    fetch(f"{bucket}/copy", str(tmp_path / "d"), Selection())
    assert not [path for method, path in s3.requests if method == "GET" and "list-type" not in path]


class FakeHub(DirFileSystem):
    """A local folder under the scheme of the Hugging Face Hub."""

    protocol = "hf"
    root = ""

    def __init__(self, **options: Any) -> None:
        super().__init__(path=self.root, fs=fsspec.filesystem("file"), **options)

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path.removeprefix("hf://").strip("/")


def test_a_hub_is_read_through_its_own_file_system(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "datasets" / "LEAP").mkdir(parents=True)
    source.rename(tmp_path / "datasets" / "LEAP" / "low-res")
    monkeypatch.setattr(FakeHub, "root", str(tmp_path))
    monkeypatch.setitem(sys.modules["fsspec.registry"]._registry, "hf", FakeHub)
    fetch("hf://datasets/LEAP/low-res", str(tmp_path / "d"), Selection(MARCH, APRIL, stride=5))
    steps = [step for step in range(MARCH.first_step, MARCH.first_step + STEPS) if step % 5 == 0]
    names = {f"train/{MARCH}/{file_name(stream, step)}" for stream in ("mli", "mlo") for step in steps}
    assert copied(tmp_path / "d") == {name: content(name) for name in names}


def leapray(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["leapray", *map(str, arguments)])
    with pytest.raises(SystemExit) as exited:
        cli.main()
    return int(exited.value.code or 0)


def test_the_verb_says_what_was_copied_and_what_was_there(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["fetch", source, tmp_path / "d", "--start", "0001-02", "--stop", "0001-04", "--rate", "1000", "--parallel", "2"]
    assert leapray(monkeypatch, *asked) == 0
    files = copied(tmp_path / "d")
    size = scaled(sum(map(len, files.values())))
    assert f"copied {len(files)} files ({size}) to {tmp_path / 'd'}\n" in capsys.readouterr().out
    assert leapray(monkeypatch, *asked) == 0
    assert f"copied 0 files (0 B) to {tmp_path / 'd'}; {len(files)} ({size}) were there already" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["SOURCE", "DEST", "--start", "0001-03", "--stop", "0001-07"], "no files for month 0001-04, 0001-06"),
        (["SOURCE/flat", "DEST", "--start", "0002-03"], "no files from 0002-03 up to the end; expected names such as E3SM"),
        (["SOURCE/nowhere", "DEST"], "SOURCE/nowhere: no such file"),
        (["nope://x", "DEST"], "nope://x: Protocol not known: nope"),
        (["SOURCE", "DEST", "--stride", "7", "--phase", "7"], "stride 7 with phase 7"),
        (["SOURCE", "DEST", "--parallel", "0"], "parallel 0"),
        (["kaggle://leap", "DEST"], "kaggle://leap: needs an extra, pip install 'leapray[kaggle]'"),
    ],
)
def test_a_mistake_is_one_sentence(
    arguments: list[str], words: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "kaggle", None)
    for path in (source / "train/0001-04").iterdir():
        path.unlink()
    (source / "flat/low-res.0001-06.parquet").unlink(missing_ok=True)
    places = {"SOURCE": str(source), "DEST": str(tmp_path / "d")}
    filled = [re.sub("SOURCE|DEST", lambda match: places[match[0]], argument) for argument in arguments]
    assert leapray(monkeypatch, "fetch", *filled) == 2
    printed = capsys.readouterr().err.strip()
    assert len(printed.splitlines()) == 1
    assert words.replace("SOURCE", str(source)) in printed
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    ("status", "words"), [(404, "no such file"), (403, r"access is denied \(403\)"), (503, "still fails after 6 attempts")]
)
def test_what_a_web_server_refuses_is_named(status: int, words: str, tmp_path: Path, waits: list[float]) -> None:
    class Refusing(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(status)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        with pytest.raises(UserError, match=words):
            fetch(f"http://127.0.0.1:{server.server_port}/data", str(tmp_path / "d"), Selection())
        server.shutdown()
    assert len(waits) == (faults.ATTEMPTS - 1 if status == 503 else 0)


def test_a_disk_without_room_is_refused_before_anything_is_copied(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms.shutil, "disk_usage", lambda place: SimpleNamespace(free=1000))
    with pytest.raises(UserError, match=r"d: 47\.4 kB to copy, 1\.00 kB free, so 46\.4 kB too little; choose fewer months"):
        fetch(str(source), str(tmp_path / "d"), Selection(FEBRUARY, MARCH))
    assert not (tmp_path / "d").exists()


class FakeKaggle:
    """The part of Kaggle's client that leapray calls: two pages of files, the larger ones wrapped in an archive."""

    files: ClassVar = {"train.csv": b"t" * 5000, "deep/test.csv": b"u" * 10}

    def authenticate(self) -> None:
        pass

    def competition_list_files(self, name: str, page_token: str | None, page_size: int) -> SimpleNamespace:
        assert name == "leap"
        index = int(page_token or 0)
        (file, body) = list(self.files.items())[index]
        return SimpleNamespace(files=[SimpleNamespace(name=file, total_bytes=len(body))], next_page_token="" if index else "1")

    def competition_download_file(self, name: str, file: str, path: str, force: bool, quiet: bool) -> None:
        target = Path(path) / Path(file).name
        if len(self.files[file]) < 1000:
            target.write_bytes(self.files[file])
        else:
            with zipfile.ZipFile(f"{target}.zip", "w") as archive:
                archive.writestr(target.name, self.files[file])


def test_kaggles_own_client_is_used_for_kaggle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("kaggle.api.kaggle_api_extended")
    module.KaggleApi = FakeKaggle  # type: ignore[attr-defined]
    for name in ("kaggle", "kaggle.api"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert fetch("kaggle://leap", str(tmp_path / "d"), Selection()).files == 2
    assert copied(tmp_path / "d") == FakeKaggle.files
    assert fetch("kaggle://leap", str(tmp_path / "d"), Selection()).present_files == 2


def test_a_destination_inside_the_source_is_refused(source: Path) -> None:
    with pytest.raises(UserError, match="lies in the source"):
        fetch(str(source), str(source / "copy"), Selection())
    assert not (source / "copy").exists()
