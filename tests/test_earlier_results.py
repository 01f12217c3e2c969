"""Results of a leapray that did not know skill are refused in a sentence."""

import json
from pathlib import Path

import pytest

from leapray.errors import UserError
from leapray.inference.weights import read_weights
from leapray.models.directory import load_info
from leapray.recipe import Choice, validate
from leapray.training.run import Run
from leapray.training.sweep import _Noted
from tests.columns import TARGETS
from tests.inference.exported import saved


def test_a_model(tmp_path: Path) -> None:
    url = saved(tmp_path / "model")
    content = json.loads((tmp_path / "model" / "model.json").read_text())
    del content["format"]
    (tmp_path / "model" / "model.json").write_text(json.dumps(content | {"schema_hash": "abc"}))
    with pytest.raises(UserError, match=r"model\.json: of another format, None, than this leapray's models; train the model again"):
        load_info(url)


def test_the_records_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"event": "validation", "r2": 0.4, "step": 3}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl: written by an earlier leapray"):
        Run(str(tmp_path)).records()


def test_the_weights_of_an_ensemble(tmp_path: Path) -> None:
    groups = {"all": [variable.name for variable in TARGETS.variables]}
    content = {"method": "solved", "groups": groups, "members": [{"name": "a", "weights": {"all": 1.0}}]}
    path = tmp_path / "ensemble.json"
    path.write_text(json.dumps(content | {"figures": {"blend": {"ensemble": 0.3}}}))
    with pytest.raises(UserError, match=r"ensemble\.json: written by an earlier leapray"):
        read_weights(str(path))


def test_the_trials_of_a_sweep() -> None:
    with pytest.raises(UserError, match="before skill"):
        validate(_Noted, {"name": "s", "trials": [{"number": 0, "values": {}, "state": "finished", "r2": 0.5}]}, "sweep.json")


def test_what_is_written_now_is_read(tmp_path: Path) -> None:
    assert load_info(saved(tmp_path / "model")).network == Choice(name="mlp", options={"hidden": [16], "confidence": True})
