"""The demo's whole road, with little data and a tiny network."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from leapray import demo
from leapray.data.flat import list_pieces, read_piece
from leapray.errors import UserError
from leapray.inference.submission import score_files
from leapray.inference.weights import read_weights
from leapray.models.registry import build_network
from leapray.recipe.experiment import load_experiment
from tests.columns import CHANNELS, TARGETS

pytestmark = pytest.mark.ray

TINY = demo.Size(
    low_res_stride=1999,
    aqua_planet_stride=1999,
    overrides=(
        "change.training.epochs=1",
        "change.training.schedule={name: constant}",
        "recipes.low-res-aqua.change.network.options={encoder: [8], lstm_hidden: 4, lstm_layers: 1, gru_hidden: 2, head: [16], dropout: 0}",
        "recipes.mlp.change.network.options={hidden: [16], activation: silu}",
    ),
)
MEMBERS = {"low-res-aqua", "mlp", "continue", "warm", "swa", "ema", "greedy"}
"""Those that can be: an average may be one of the others over again, and is then no further one."""


def test_the_demo_ends_with_an_ensemble_a_submission_a_report_and_emulators_that_are_one_thing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_cluster: None
) -> None:
    monkeypatch.setattr(demo, "QUICK", TINY)
    scores = demo.run(tmp_path, quick=True)
    assert list(scores)[-1] == "ceiling"
    assert {"ensemble", "climatology", "ridge"} <= set(scores)
    assert MEMBERS - {"greedy"} <= set(scores) - {"ensemble", "climatology", "ridge", "ceiling"} <= MEMBERS
    skill = {name: score.skill for name, score in scores.items()}
    # the physics moves what is next to 0
    assert abs(skill["climatology"]) < 0.05 < skill["ridge"] < skill["ceiling"] < scores["ceiling"].attainable
    assert list(skill.values()) == sorted(skill.values())
    written = json.loads((tmp_path / "scores.json").read_text())
    assert written["ensemble"]["skill"] == scores["ensemble"].skill
    assert written["ensemble"]["r2"] == scores["ensemble"].learned
    assert written["ensemble"]["skill_by_variable"] == scores["ensemble"].skill_by_variable()

    test, sample = str(tmp_path / "flat" / "low-res-test"), str(tmp_path / "sample_submission.csv")
    submitted = score_files(str(tmp_path / "submission.csv"), test, sample)
    np.testing.assert_allclose(submitted.r2, scores["ensemble"].r2, rtol=0, atol=1e-12)
    blend = read_weights(str(tmp_path / "ensemble" / "ensemble.json")).figures["blend"]
    assert blend["ensemble"] >= max(blend["mean"], *blend["members"].values()) - 1e-9
    assert (tmp_path / "report" / "report.html").read_text().startswith("<!DOCTYPE html>")

    rows = next(read_piece(list_pieces(test)[0], max_rows=64))
    predicted = pq.read_table(tmp_path / "predictions" / "part-000000.parquet").slice(0, len(rows.row))
    assert predicted["sample_id"].to_pylist() == rows.sample_id.to_pylist()
    emulator = torch.jit.load(str(tmp_path / "export" / "offline" / "emulator.pt"))
    exported = emulator(torch.from_numpy(np.ascontiguousarray(rows.inputs))).numpy()
    spread = np.concatenate([block.targets for piece in list_pieces(test) for block in read_piece(piece)]).std(axis=0)
    expected = np.stack([predicted[name].to_numpy() for name in TARGETS.columns], axis=1)
    assert (np.abs(exported - expected) <= 1e-4 * spread + 1e-300).all()

    report = (tmp_path / "report" / "report.html").stat().st_mtime_ns
    again = demo.run(tmp_path, quick=True)
    np.testing.assert_array_equal(again["ensemble"].r2, scores["ensemble"].r2)
    assert (tmp_path / "report" / "report.html").stat().st_mtime_ns == report
    with pytest.raises(UserError, match="holds a demo of other settings"):
        demo.run(tmp_path, quick=False)


def test_the_perceptron_has_as_many_parameters_as_the_network_beside_it() -> None:
    _, recipes = load_experiment(str(demo.EXPERIMENT))
    with torch.device("meta"):
        networks = [build_network(recipe.network.name, recipe.network.options, CHANNELS) for recipe in recipes.values()]
    sizes = [sum(tensor.numel() for tensor in network.parameters()) for network in networks]
    assert abs(sizes[0] / sizes[1] - 1) < 0.01
