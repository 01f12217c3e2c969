"""Prepare that is cut off anywhere and run again: what is left at the end is what an undisturbed run leaves, byte for byte."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from leapray import storage
from leapray.data import prepare as room
from leapray.data import statistics as fit
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

    for module in (room, fit):
        monkeypatch.setattr(module, "run_tasks", run_tasks)
    monkeypatch.setattr(room.session, "connected", nullcontext)


@pytest.fixture
def cut_off(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[str]]:
    """Make the n-th write or removal from now on the last: a file stays under its temporary name, as after a kill."""
    whole, gone = storage.atomic_file, storage.remove

    def arm(last: int) -> list[str]:
        written: list[str] = []

        def remove(url: str) -> None:
            written.append(url)
            if len(written) == last:
                raise Killed
            gone(url)

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

        for place in (storage, storage.writing):
            monkeypatch.setattr(place, "atomic_file", atomic_file)
        monkeypatch.setattr(storage, "remove", remove)
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
        assert not list(root.rglob("*.arrow"))


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


def test_what_is_gone_or_not_whole_is_made_again(tmp_path: Path, cut_off: Callable[[int], list[str]]) -> None:
    flat = write_flat(tmp_path / "flat", stop="0001-05")
    room.prepare(recipe(tmp_path / "whole", flat))
    undisturbed = content(tmp_path / "whole")
    # a finished directory that lost a shard
    root = tmp_path / "lost"
    room.prepare(recipe(root, flat))
    first, second, *_ = sorted((root / "prepared" / "train").rglob("*.parquet"))
    for spoil in (first.unlink, lambda: second.write_bytes(second.read_bytes()[:-10])):
        spoil()
        room.prepare(recipe(root, flat))
        assert content(root) == undisturbed
    # an unfinished one that lost a scattered file, and a note that a crash left empty
    root = tmp_path / "torn"
    cut_off(14)
    with pytest.raises(Killed):
        room.prepare(recipe(root, flat))
    cut_off(-1)
    work = sorted((root / "prepared" / "train" / "low_res" / ".work").iterdir())
    next(path for path in work if path.suffix == ".arrow").unlink()
    next(path for path in work if path.name == "000001.json").write_bytes(b"")
    room.prepare(recipe(root, flat))
    assert content(root) == undisturbed


def test_other_statistics_are_another_preparation(tmp_path: Path) -> None:
    flat = write_flat(tmp_path / "flat", stop="0001-05")
    room.prepare(recipe(tmp_path / "first", flat))
    carried = tmp_path / "transform.json"
    shutil.copy(tmp_path / "first" / "prepared" / "transform.json", carried)
    room.prepare(recipe(tmp_path, flat, statistics=str(carried)))
    carried.write_text(carried.read_text().replace("low_res", "other", 1))
    with pytest.raises(UserError, match=r"was prepared otherwise \(the files of statistics\)"):
        room.prepare(recipe(tmp_path, flat, statistics=str(carried)))


def without_places(path: Path) -> pa.Table:
    table = pq.read_table(path).drop_columns(["kind", "step", "ncol"])
    return table.set_column(0, "sample_id", pa.array([f"train_{row}" for row in range(len(table))]))


@pytest.mark.parametrize("stream_from", ["shards", "flat"])
def test_rows_that_stand_twice_are_refused_however_they_lie(tmp_path: Path, stream_from: str) -> None:
    flat = write_flat(tmp_path / "flat", stop="0001-05")
    first = flat / "low-res.0001-02.parquet"
    other = tmp_path / "other"
    shutil.copytree(flat, other)
    shutil.copy(first, other / "copy.0001-02.parquet")
    with pytest.raises(UserError, match=r"copy\.0001-02\.parquet or .*: step \d, column \d is in sources\.low_res\.train twice"):
        room.prepare(recipe(tmp_path / "copied", other, stream_from=stream_from))
    for path in flat.iterdir():
        pq.write_table(without_places(path), path)
    room.prepare(recipe(tmp_path / "plain", flat, stream_from=stream_from))
    table = pq.read_table(first)
    pq.write_table(pa.concat_tables([table, table]), first, row_group_size=len(table))
    with pytest.raises(UserError, match=r"low-res\.0001-02\.parquet.*: a row with the same sample_id is in sources\.low_res\.train twice"):
        room.prepare(recipe(tmp_path / "doubled", flat, stream_from=stream_from))


@pytest.mark.parametrize("stream_from", ["shards", "flat"])
@pytest.mark.parametrize(("column", "value", "sentence"), [("kind", "aqua-planet", "kind holds aqua-planet"), ("state_u_3", np.nan, "NaN")])
@pytest.mark.parametrize("month", ["0001-02", "0001-04"])
def test_no_bad_row_is_unseen_in_any_split(tmp_path: Path, stream_from: str, column: str, value: Any, sentence: str, month: str) -> None:
    flat = write_flat(tmp_path / "flat", stop="0001-05")
    path = flat / f"low-res.{month}.parquet"
    table = pq.read_table(path)
    values = table[column].to_pylist()
    spoilt = pa.array([value] * len(values) if column == "kind" else [*values[:-1], value])
    pq.write_table(table.set_column(table.schema.get_field_index(column), column, spoilt), path)
    with pytest.raises(UserError, match=sentence):
        room.prepare(recipe(tmp_path, flat, stream_from=stream_from))


def test_a_place_of_other_things_is_refused_and_left_alone(tmp_path: Path) -> None:
    flat = write_flat(tmp_path / "flat", stop="0001-05")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.tex").write_text("Chapter 1")
    for place, sentence in (
        ("notes", "holds other things than prepared data"),
        ("flat", "lie in one another"),
        ("flat/new", "lie in one another"),
    ):
        with pytest.raises(UserError, match=sentence):
            room.prepare(recipe(tmp_path, flat, prepared=str(tmp_path / place)))
    assert [path.name for path in (tmp_path / "notes").iterdir()] == ["thesis.tex"]
    assert not (flat / "new").exists()


def test_one_source_under_two_names_is_refused(tmp_path: Path) -> None:
    flat = write_flat(tmp_path / "flat", stop="0001-05")
    values = recipe(tmp_path, flat).to_dict()
    values["data"]["sources"]["again"] = {**values["data"]["sources"]["low_res"], "validation": None}
    with pytest.raises(UserError, match=r"sources\.again\.train and sources\.low_res\.train are the same files and months"):
        room.prepare(parse_recipe(values))
