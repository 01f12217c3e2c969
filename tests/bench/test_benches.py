"""Every bench runs and tells what it promised; its speed is not judged here."""

import json
import math
from pathlib import Path

import pytest
from typer.testing import CliRunner

from leapray.bench.benches import BENCHES, run_bench
from leapray.bench.compare import Settings
from leapray.cli import app
from leapray.errors import UserError
from tests.samples import sample_recipe

BARS = {
    "convert": {"cdf5, to disk": 10, "hdf5, to disk": 10},
    "statistics": {"time, files of ours": 1.3, "time, files of pandas": 1.3, "memory, 8x rows against 1x": 1.1},
    "ingest": {"shards, original": 3, "shards, arrow": 1},
    "train-step": {
        "step, network alone": 0.95,
        "Ray Train, loop without Ray": 0.95,
        "idle, best ordinary step": 0.95,
        "busy process, operators in threads": 8,
    },
    "predict": {"submission, original's loop": 3},
}


@pytest.mark.ray
@pytest.mark.parametrize("name", BENCHES)
def test_a_bench_compares_every_row_of_its_bars(ray_cluster: None, tmp_path: Path, name: str) -> None:
    out = tmp_path / "rows.json"
    result = CliRunner().invoke(app, ["bench", name, "--quick", "--json", str(out), "--dir", str(tmp_path)], catch_exceptions=False)
    assert result.exit_code == 0
    assert f"bench {name}" in result.output
    rows = json.loads(out.read_text())
    assert {row["case"]: row["bar"] for row in rows if row["bar"] is not None} == BARS[name]
    for row in rows:
        assert set(row) == {"bench", "case", "ours", "baseline", "unit", "ratio", "bar", "met"}
        assert row["bench"] == name
        assert row["ratio"] > 0
        assert math.isfinite(row["ratio"])
    assert [path.name for path in tmp_path.iterdir()] == ["rows.json"]


def test_mistakes_are_told_before_anything_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="bench 'conver' is not one of convert, statistics, ingest, train-step, predict"):
        run_bench("conver", Settings(tmp_path))
    with pytest.raises(UserError, match="rounds = 0 is not 1 or more"):
        run_bench("convert", Settings(tmp_path, rounds=0))
    with pytest.raises(UserError, match="bench convert takes no recipe"):
        run_bench("convert", Settings(tmp_path), sample_recipe(tmp_path))
    with pytest.raises(UserError, match="not a directory that can be written to"):
        run_bench("convert", Settings(tmp_path / "none"))
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere:6379")
    with pytest.raises(UserError, match="bench measures this machine alone; unset RAY_ADDRESS"):
        run_bench("convert", Settings(tmp_path))
    assert list(tmp_path.iterdir()) == []
