"""The command line as a user meets it: what it says and how it exits."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from leapray import cli
from leapray.climsim.calendar import file_name
from tests.official_layout import write_pair
from tests.samples import recipe_values, write_flat


def leapray(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run a verb in this process and return its exit status."""
    monkeypatch.setattr("sys.argv", ["leapray", *map(str, arguments)])
    with pytest.raises(SystemExit) as exited:
        cli.main()
    return exited.value.code if isinstance(exited.value.code, int) else int(bool(exited.value.code))


def write_recipe(root: Path, values: dict[str, Any]) -> Path:
    path = root / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def assert_refused(status: int, capsys: pytest.CaptureFixture[str], *words: str) -> None:
    """Exit status 2 and one sentence, without a traceback, that holds the words."""
    printed = capsys.readouterr().err.strip()
    assert status == 2, printed
    assert printed.startswith("error: ")
    assert len(printed.splitlines()) == 1
    for word in words:
        assert word in printed


def test_synthesize_writes_pairs_and_their_ceiling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ceiling = tmp_path / "ceiling.json"
    status = leapray(monkeypatch, "synthesize", tmp_path / "d", "--kind", "low-res", "--steps", 2, "--columns", 12, "--ceiling", ceiling)
    assert status == 0
    assert f"wrote 2 pairs of low-res to {tmp_path / 'd'}" in capsys.readouterr().out
    names = sorted(path.name for path in (tmp_path / "d" / "0001-02").iterdir())
    assert names == sorted(file_name(stream, step) for stream in ("mli", "mlo") for step in (0, 1))
    values = json.loads(ceiling.read_text())
    assert len(values) == 368
    assert max(values.values()) <= 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["synthesize", "x", "--kind", "lowres", "--steps", "1"], ["lowres", "low-res"]),
        (["synthesize", "x", "--kind", "low-res", "--steps", "0"], ["steps", "0"]),
        (["synthesize", "x", "--kind", "low-res", "--steps", "1", "--format", "zarr"], ["zarr", "cdf5", "hdf5"]),
        (["synthesize", "x", "--kind", "low-res", "--steps", "1", "--start", "01-02"], ["'01-02'", "YYYY-MM"]),
        (["recipe", "check", "nowhere.yaml"], ["nowhere.yaml", "no such file"]),
        (["predict", "model", "input"], ["MODEL... INPUT DEST"]),
        (["evaluate", "none.parquet", "none.parquet", "x"], ["none.parquet"]),
        (["submit", "none", "out.csv", "--sample-submission", "none.csv"], ["none"]),
    ],
)
def test_a_mistake_is_one_sentence_and_status_2(
    arguments: list[str], words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(leapray(monkeypatch, *arguments), capsys, *words)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_key_or_overlapping_months_of_a_recipe_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path, recipe_values(tmp_path))
    assert leapray(monkeypatch, "recipe", "check", recipe) == 0
    capsys.readouterr()
    assert_refused(leapray(monkeypatch, "train", recipe, "--set", "training.epoch=3"), capsys, "training.epoch", "did you mean 'epochs'?")
    overlap = "data.sources.low_res.validation.start=0001-03"
    assert_refused(
        leapray(monkeypatch, "prepare", recipe, "--set", overlap), capsys, "months overlap", "low_res.train", "low_res.validation"
    )
    assert_refused(leapray(monkeypatch, "recipe", "check", recipe, "--set", "network.name=lstm"), capsys, "network.name", "low-res-aqua")


def test_recipe_show_fills_in_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_recipe(tmp_path, recipe_values(tmp_path))
    assert leapray(monkeypatch, "recipe", "show", recipe, "--set", "training.batch_size=16") == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["training"]["batch_size"] == 16
    assert shown["training"]["precision"] == "float32"


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    for step in range(3):
        write_pair(tmp_path / "pairs", step, columns=6)
    return tmp_path / "pairs"


@pytest.mark.ray
def test_damaged_netcdf_is_refused_and_nothing_is_half_written(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], ray_cluster: None
) -> None:
    files = sorted(pairs.rglob("*.mlo.*.nc"))
    whole = files[1].read_bytes()
    files[1].write_bytes(whole[: len(whole) // 2])
    assert_refused(leapray(monkeypatch, "convert", pairs, tmp_path / "flat"), capsys, files[1].name)
    assert [path.name for path in (tmp_path / "flat").rglob("*.parquet")] == []
    files[1].unlink()
    assert_refused(leapray(monkeypatch, "convert", pairs, tmp_path / "flat"), capsys, file_name("mli", 1), "mlo")
    files[1].write_bytes(whole)
    assert leapray(monkeypatch, "convert", pairs, tmp_path / "flat") == 0
    assert "wrote 18 rows" in capsys.readouterr().out


def replaced(path: Path, change: Any) -> None:
    pq.write_table(change(pq.read_table(path)), path)


def with_nan(table: pa.Table) -> pa.Table:
    values = table["state_t_5"].to_numpy().copy()
    values[3] = np.nan
    return table.set_column(table.schema.get_field_index("state_t_5"), "state_t_5", pa.array(values))


@pytest.mark.ray
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: replaced(path, lambda table: table.drop_columns(["state_v_7"])), ["state_v_7", "missing"]),
        (
            lambda path: replaced(path, lambda table: table.rename_columns([n.replace("state_ps", "ps") for n in table.column_names])),
            ["state_ps"],
        ),
        (lambda path: replaced(path, with_nan), ["NaN in 1 column", "state_t_5", "bad_rows"]),
        (lambda path: path.write_bytes(path.read_bytes()[:-1000]), ["parquet"]),
        (lambda path: path.unlink(), ["0001-03"]),
    ],
    ids=["missing column", "renamed column", "NaN", "truncated", "empty month"],
)
def test_damaged_flat_files_are_refused_and_nothing_is_half_written(
    damage: Any, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], ray_cluster: None
) -> None:
    flat = write_flat(tmp_path / "flat", stop="0001-05", steps=2)
    damage(flat / "low-res.0001-03.parquet")
    recipe = write_recipe(tmp_path, recipe_values(tmp_path))
    assert_refused(leapray(monkeypatch, "prepare", recipe), capsys, *words)
    left = [path.name for path in (tmp_path / "prepared").rglob("*") if path.is_file()]
    assert left in ([], ["prepare.json"])


@pytest.mark.ray
def test_an_extra_column_is_ignored_with_a_notice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], ray_cluster: None
) -> None:
    flat = write_flat(tmp_path / "flat", stop="0001-05", steps=2)
    replaced(flat / "low-res.0001-03.parquet", lambda table: table.append_column("cam_in_SNOWHICE", pa.array(np.full(len(table), 1e30))))
    recipe = write_recipe(tmp_path, recipe_values(tmp_path))
    assert leapray(monkeypatch, "prepare", recipe) == 0
    printed = capsys.readouterr()
    assert re.search(r"note: .*cam_in_SNOWHICE", printed.err)
    assert re.search(r"train\s+low_res\s+32 rows", printed.out)
