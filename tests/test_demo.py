"""The demo's whole road, with little data and a tiny network."""

import json
from pathlib import Path

import numpy as np
import pytest

from leapray import demo
from leapray.errors import UserError
from leapray.evaluation.score import score_files
from leapray.models.directory import load_model

pytestmark = pytest.mark.ray

TINY = demo.Size(
    low_res_stride=1999,
    aqua_planet_stride=1999,
    overrides=(
        "training.epochs=1",
        "training.schedule={name: constant}",
        "network.options={encoder: [8], lstm_hidden: 4, lstm_layers: 1, gru_hidden: 2, head: [16], dropout: 0}",
    ),
)


def test_the_demo_ends_with_a_submission_that_scores_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], ray_cluster: None
) -> None:
    monkeypatch.setattr(demo, "QUICK", TINY)
    scores = demo.run(tmp_path, quick=True)
    variants = ["continue", "warm", "swa", "ema", "greedy"]
    names = list(scores)
    assert names[:4] == ["climatology", "ridge", "MLP", "BiLSTM"]
    assert sorted(names[4:-2]) == sorted(variants)
    assert names[-2:] == ["mean of all", "ceiling"]

    test = str(tmp_path / "flat" / "low-res-test")
    predictions = score_files(str(tmp_path / "predictions"), test)
    np.testing.assert_allclose(predictions.r2, scores["mean of all"].r2, rtol=0, atol=1e-12)
    written = json.loads((tmp_path / "scores.json").read_text())
    assert written["BiLSTM"]["learned"] == scores["BiLSTM"].learned
    assert abs(scores["climatology"].learned) < 0.05 < scores["ridge"].learned < scores["ceiling"].learned < 0.95
    parameters = [
        sum(tensor.numel() for tensor in load_model(str(tmp_path / "runs" / name / "model")).emulator.network.parameters())
        for name in ("mlp", "low-res-aqua")
    ]
    assert 0.5 < parameters[0] / parameters[1] < 2

    capsys.readouterr()
    again = demo.run(tmp_path, quick=True)
    np.testing.assert_array_equal(again["BiLSTM"].r2, scores["BiLSTM"].r2)
    with pytest.raises(UserError, match="holds a demo of other settings"):
        demo.run(tmp_path, quick=False)
