"""What of a source is read: links, hidden names and other suffixes, by one rule for all verbs, on disk and in a bucket."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from leapray import storage
from leapray.cli import app
from leapray.climsim.calendar import Month
from leapray.climsim.netcdf import Snapshot
from leapray.climsim.pairs import find_archive
from leapray.climsim.row_keys import row_place
from leapray.data.check import check
from leapray.data.fetch import fetch
from leapray.data.flat import Selection, list_pieces, read_piece, survey, to_table
from leapray.data.parts import cut
from leapray.data.row_counts import count_rows
from leapray.doctor_places import Place, judge_visits, visit
from leapray.errors import UserError
from leapray.evaluation.tables import files, read_keys
from leapray.recipe import parse_recipe
from tests.official_layout import expected_rows, write_pair
from tests.samples import random_rows, recipe_values, write_flat

Reader = Callable[[str, list[str]], int]
"""Rows of a source as a verb counts them; what it tells is added to the list."""


def write_table(path: Path, step: int, rows: int = 3) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        pq.write_table(to_table(Snapshot("low-res", step, random_rows(rows, step))), file)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Six files of 3 rows that count, in folders and behind links, among others that do not."""
    root, store = tmp_path / "root", tmp_path / "store"
    for step, place in enumerate(
        (root / "0001-02", root / "0001-02/deep", store / "feb", store / "mar", store / "mar/inner", tmp_path / "far"), 1
    ):
        write_table(place / "part.parquet", step)
    for name in ("0001-02/.name.parquet", "0001-02/._part.parquet", "_old/part.parquet", "0001-02/.ipynb_checkpoints/part.parquet"):
        write_table(root / name, 50)
    for name in ("a.pq", "b.nc.gz", "0001-02/c.csv.gz", "README"):
        (root / name).write_bytes(b"other")
    os.mkfifo(root / "pipe.parquet")
    for link, target in (
        (root / "0001-03", store / "feb"),
        (root / "latest", root / "0001-02"),
        (root / "0001-02/again", root / "0001-03"),
        (root / "up", tmp_path),
        (store / "feb/linked", store / "mar"),
        (store / "feb/loop", store / "feb"),
        (store / "mar/round", store / "feb"),
        (store / "mar/inner/far", tmp_path / "far"),
    ):
        link.symlink_to(target)
    return root


PASSED_OVER = ("0001-02/c.csv.gz", "README", "a.pq", "b.nc.gz", "pipe.parquet")
NOTICE = "passed over 5 files: 0001-02/c.csv.gz, README, a.pq and 2 more"


def test_links_are_followed_once_hidden_names_ignored_and_the_rest_is_named(tree: Path) -> None:
    found = storage.list_data(str(tree), lambda name: name.endswith(".parquet"))
    real = sorted(str(Path(name).resolve().relative_to(tree.parent)) for name in found.files)
    assert real == sorted(
        f"{name}/part.parquet" for name in ("root/0001-02", "root/0001-02/deep", "store/feb", "store/mar", "store/mar/inner", "far")
    )
    # a folder that lies there is known by its own name, not by that of a link to it
    assert f"{tree}/0001-02/part.parquet" in found.files
    assert found.passed_over == PASSED_OVER
    assert found.notice == f"{tree}: {NOTICE}"


def test_a_source_that_is_itself_hidden_or_a_link_is_read(tree: Path) -> None:
    (tree.parent / ".data").symlink_to(tree)
    for name in (f"{tree.parent}/.data", f"{tree}/_old", f"{tree}/_old/part.parquet", f"{tree}/0001-02/.name.parquet"):
        assert storage.list_data(name, lambda name: name.endswith(".parquet")).files
    assert len(storage.list_data(f"{tree.parent}/.data", lambda name: name.endswith(".parquet")).files) == 6


def test_a_link_to_a_file_has_the_size_and_mark_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "file.nc").write_bytes(b"12345")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/x.nc").symlink_to(tmp_path / "file.nc")
    before = storage.list_data(str(tmp_path / "data"), lambda name: True)
    os.utime(tmp_path / "file.nc", (5, 5))
    after = storage.list_data(str(tmp_path / "data"), lambda name: True)
    assert list(before.sizes.values()) == list(after.sizes.values()) == [5]
    assert before.marks != after.marks


def test_a_data_file_that_is_a_broken_link_is_named(tmp_path: Path) -> None:
    write_table(tmp_path / "a.parquet", 0)
    (tmp_path / "b.parquet").symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match=r"b\.parquet"):
        survey(str(tmp_path))


@pytest.mark.parametrize("scheme", ["s3", "memory"])
def test_a_store_is_listed_by_the_same_rule(tree: Path, request: pytest.FixtureRequest, scheme: str) -> None:
    root = storage.absolute(f"{request.getfixturevalue('bucket')}/data" if scheme == "s3" else f"memory://{tree.parent.name}/data")
    for folder, _, names in os.walk(tree):
        for name in names:
            path = Path(folder, name)
            if path.is_file():
                storage.write_bytes(f"{root}/{path.relative_to(tree)}", path.read_bytes())
    found = storage.list_data(root, lambda name: name.endswith(".parquet"))
    assert [name.removeprefix(root) for name in found.files] == ["/0001-02/deep/part.parquet", "/0001-02/part.parquet"]
    assert found.passed_over == PASSED_OVER[:-1]
    notices: list[str] = []
    assert survey(root, notice=notices.append).rows == 6
    assert any("passed over 4 files: 0001-02/c.csv.gz, README, a.pq and 1 more" in one for one in notices)
    told: list[str] = []
    assert fetched(root, told, tree.parent / "copy") == 6
    assert len(told) == 1
    assert any("passed over" in finding.text for finding in check(root))


def read_by_survey(source: str, told: list[str]) -> int:
    """As predict, evaluate and prepare read it."""
    return sum(len(block.row) for piece in list_pieces(source, notice=told.append) for block in read_piece(piece))


def read_by_prepare(source: str, told: list[str]) -> int:
    values = recipe_values(Path(source).parent)
    months = {"train": {"start": "0001-02", "stop": "0001-03"}}
    values["data"]["sources"] = {"low_res": {"kind": "low-res", "path": source, **months}}
    parts = cut(parse_recipe(values).data, str(Path(source).parent / "prepared"), told.append)
    return sum(piece.rows for part in parts for piece in part.pieces)


def read_by_plan(source: str, told: list[str]) -> int:
    values = recipe_values(Path(source).parent)
    values["data"]["sources"] = {"low_res": {"kind": "low-res", "path": source, "train": {"start": "0001-02", "stop": "0001-03"}}}
    return count_rows(parse_recipe(values).data, told.append)["low_res"].total


def read_by_evaluate(source: str, told: list[str]) -> int:
    return len(read_keys(source, told.append).ids)


def fetched(source: str, told: list[str], destination: Path | None = None) -> int:
    copy = destination or Path(source).parent / "copy"
    fetch(source, str(copy), Selection(), notice=told.append)
    return survey(str(copy)).rows or 0


def looked_at_by_doctor(source: str, told: list[str]) -> int:
    seen = visit(Place("data.sources.low_res.path", source, False))
    told += [finding.text for finding in judge_visits([seen])]
    size = sum(os.path.getsize(file) for file in files(source))
    assert seen.bytes == size
    return 18


READERS = [read_by_survey, read_by_prepare, read_by_plan, read_by_evaluate, fetched, looked_at_by_doctor]


@pytest.mark.parametrize("read", READERS)
def test_every_verb_reads_all_rows_once_and_names_the_rest(tree: Path, read: Reader) -> None:
    told: list[str] = []
    assert read(str(tree), told) == 18
    assert sum(NOTICE in sentence for sentence in told) == 1


def test_check_counts_linked_months_and_names_the_rest(tmp_path: Path) -> None:
    write_flat(tmp_path / "store", stop="0001-05")
    root = tmp_path / "root"
    for month in ("0001-02", "0001-03"):
        (root / month).mkdir(parents=True)
        shutil.move(tmp_path / f"store/low-res.{month}.parquet", root / month)
    (root / "0001-04").symlink_to(tmp_path / "store")
    (root / "latest").symlink_to(root / "0001-03")
    (root / "0001-03/._low-res.parquet").write_bytes(b"mac")
    (root / "0001-03/more.pq").write_bytes(b"other")
    texts = [finding.text for finding in check(str(root))]
    assert any(text.startswith("3 files in that folder and those beside it") and "3 months, 0001-02 to 0001-04" in text for text in texts)
    assert any(text == "passed over 1 file: 0001-03/more.pq" for text in texts)


@pytest.mark.parametrize("name", ["a.pq", "a.parq", "a.csv.gz", "a.nc.gz"])
def test_a_source_of_other_suffixes_alone_is_refused_by_their_names(tmp_path: Path, name: str) -> None:
    source = tmp_path / "data"
    source.mkdir()
    (source / name).write_bytes(b"other")
    (source / ".hidden.parquet").write_bytes(b"hidden")
    tried: list[Callable[[], object]] = [
        lambda: survey(str(source)),
        lambda: files(str(source)),
        lambda: check(str(source)),
        lambda: fetch(str(source), str(tmp_path / "copy"), Selection()),
        lambda: find_archive(str(source), skip=False),
        lambda: survey(str(source / name)),
    ]
    for read in tried:
        with pytest.raises(UserError, match=rf"passed over 1 file: {name}$"):
            read()
    trouble = visit(Place("data.sources.low_res.path", str(source), False)).trouble
    assert trouble is not None
    assert trouble.endswith(f"passed over 1 file: {name}")


def test_flat_files_without_a_month_are_named_where_fetch_is_asked_for_months(tmp_path: Path) -> None:
    for name in ("0001-02.parquet", "year=1/month=3/part.parquet", "other.parquet"):
        write_table(tmp_path / "data" / name, 0)
    notices: list[str] = []
    done = fetch(str(tmp_path / "data"), str(tmp_path / "copy"), Selection(stop=Month.parse("0001-03")), notice=notices.append)
    assert done.files == 1
    assert notices == [f"{tmp_path}/data: passed over 1 file: other.parquet"]
    fetch(str(tmp_path / "data"), str(tmp_path / "march"), Selection(start=Month.parse("0001-03")))
    assert [str(path.relative_to(tmp_path / "march")) for path in (tmp_path / "march").rglob("*.parquet")] == [
        "year=1/month=3/part.parquet"
    ]


@pytest.mark.ray
def test_linked_months_of_pairs_are_converted_and_the_rest_is_named(ray_cluster: None, tmp_path: Path) -> None:
    root = tmp_path / "raw"
    pairs = [write_pair(root, 0, columns=3), *(write_pair(tmp_path / "store", step, columns=3) for step in (2016, 2017))]
    (root / "0001-03").symlink_to(tmp_path / "store/0001-03")
    (root / "latest").symlink_to(tmp_path / "store")
    (tmp_path / "store/0001-03/round").symlink_to(root)
    for path in (root / "0001-02").glob("*.nc"):
        (path.parent / f"._{path.name}").write_bytes(b"mac")
        (root / ".ipynb_checkpoints").mkdir(exist_ok=True)
        shutil.copy(path, root / ".ipynb_checkpoints" / path.name)
        (root / f"{path.name}.gz").write_bytes(b"packed")
    told = CliRunner().invoke(app, ["convert", str(root), str(tmp_path / "flat")])
    assert told.exit_code == 0
    assert "wrote 9 rows" in told.output
    assert "passed over 2 files: E3SM-MMF.mli.0001-02-01-00000.nc.gz, " in told.output
    blocks = [block for piece in list_pieces(str(tmp_path / "flat")) for block in read_piece(piece)]
    found = np.concatenate([np.hstack([block.inputs, block.targets]) for block in blocks])
    assert found.tobytes() == np.concatenate([expected_rows(pair) for pair in pairs]).tobytes()
    assert row_place(np.concatenate([block.row for block in blocks]))[1].tolist() == [0] * 3 + [2016] * 3 + [2017] * 3
    assert any("3 steps have both files; 2 months" in finding.text for finding in check(str(root)))
    assert fetch(str(root), str(tmp_path / "copy"), Selection()).files == 6
