"""Prepare that is cut off anywhere and run again: what is left at the end is what an undisturbed run leaves, byte for byte."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from leapray import storage
from leapray.data import prepare as room
from leapray.errors import UserError
from leapray.recipe import Recipe, parse_recipe
from tests.samples import recipe_values, write_flat

SHARDS_OF_A_BUCKET = 4


class Killed(BaseException):
    """What nothing in between may catch."""


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks run one after another, here, where their writes can be counted and cut off."""

    def run_tasks(function: Callable[[int], Any], count: int, progress: Callable[[int, int], None]) -> Iterator[Any]:
        for task in range(count):
            yield function(task)

    monkeypatch.setattr(room, "run_tasks", run_tasks)
    monkeypatch.setattr(room.cluster, "connected", nullcontext)


@pytest.fixture
def cut_off(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[str]]:
    """Make the n-th write from now on the last: its file stays under its temporary name, as after a kill."""
    whole = storage.atomic_file

    def arm(last: int) -> list[str]:
        written: list[str] = []

        @contextmanager
        def atomic_file(url: str) -> Iterator[Any]:
            written.append(url)
            if len(written) == last:
                half = Path(url).with_name(f".tmp-0123-{Path(url).name}")
                half.parent.mkdir(parents=True, exist_ok=True)
                half.write_bytes(b"half of a fi")
                raise Killed
            with whole(url) as file:
                yield file

        monkeypatch.setattr(storage, "atomic_file", atomic_file)
        return written

    return arm


def recipe(root: Path, flat: Path, **data: Any) -> Recipe:
    values = recipe_values(root)
    values["data"]["sources"]["low_res"]["path"] = str(flat)
    values["data"] |= {"shuffle_rows": 48, "rows_per_shard": 16} | data
    return parse_recipe(values)


def content(root: Path) -> dict[str, bytes]:
    """Every file of a prepared directory but what says where it lies."""
    paths = [path for path in sorted((root / "prepared").rglob("*")) if path.is_file() and not path.name.startswith(".tmp-")]
    return {str(path.relative_to(root / "prepared")): path.read_bytes() for path in paths}


@pytest.mark.parametrize("stream_from", ["shards", "flat"])
def test_whatever_write_was_the_last_the_next_run_ends_as_an_undisturbed_one(
    tmp_path: Path, cut_off: Callable[[int], list[str]], stream_from: str
) -> None:
    flat = write_flat(tmp_path / "flat", stop="0001-05")
    settings = {"stream_from": stream_from, "bad_rows": "drop"}
    written = cut_off(-1)
    room.prepare(recipe(tmp_path / "whole", flat, **settings))
    undisturbed, writes = content(tmp_path / "whole"), len(written)
    assert writes > 8
    assert not any(".work" in name for name in undisturbed)
    for last in range(1, writes + 1):
        root = tmp_path / f"cut{last}"
        cut_off(last)
        with pytest.raises(Killed):
            room.prepare(recipe(root, flat, **settings))
        again = cut_off(-1)
        room.prepare(recipe(root, flat, **settings))
        assert content(root) == undisturbed
        # what was complete was not made again, but for the files of the task that was cut off
        assert len(again) <= writes - last + 1 + SHARDS_OF_A_BUCKET


def test_what_is_unfinished_of_other_files_or_settings_is_made_anew(tmp_path: Path, cut_off: Callable[[int], list[str]]) -> None:
    flat = write_flat(tmp_path / "flat", stop="0001-05")
    cut_off(9)
    with pytest.raises(Killed):
        room.prepare(recipe(tmp_path / "cut", flat))
    write_flat(flat, stop="0001-05", seed=5)
    cut_off(-1)
    room.prepare(recipe(tmp_path / "cut", flat))
    room.prepare(recipe(tmp_path / "whole", flat))
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


def test_a_finished_directory_of_other_files_is_refused(tmp_path: Path) -> None:
    flat = write_flat(tmp_path / "flat", stop="0001-05")
    room.prepare(recipe(tmp_path, flat))
    write_flat(flat, stop="0001-05", seed=5)
    with pytest.raises(UserError, match=r"was prepared otherwise \(the files of sources\.low_res\.train"):
        room.prepare(recipe(tmp_path, flat))


def test_a_source_that_was_moved_is_the_same(tmp_path: Path) -> None:
    flat = write_flat(tmp_path / "flat", stop="0001-05")
    room.prepare(recipe(tmp_path, flat))
    before = content(tmp_path)
    shutil.move(flat, tmp_path / "elsewhere")
    room.prepare(recipe(tmp_path, tmp_path / "elsewhere"))
    assert content(tmp_path) == before


def test_a_source_that_grows_by_other_months_is_the_same(tmp_path: Path) -> None:
    flat = write_flat(tmp_path / "flat", stop="0001-05")
    room.prepare(recipe(tmp_path, flat))
    before = content(tmp_path)
    write_flat(flat, start="0001-05", stop="0001-08")
    room.prepare(recipe(tmp_path, flat))
    assert content(tmp_path) == before
