"""The road of another variable set end to end, on synthetic pairs: convert, prepare, train, predict, evaluate, export."""

from pathlib import Path

import numpy as np
import pytest
import torch

from leapray.climsim.netcdf import read_pair
from leapray.climsim.pairs import find_pairs
from leapray.climsim.schema import KAGGLE, V2_RH
from leapray.climsim.synthetic import synthesize
from leapray.data.convert import convert
from leapray.data.prepare import prepare
from leapray.errors import UserError
from leapray.evaluation.tables import gather, read_ids
from leapray.inference.evaluate import evaluate
from leapray.inference.export import export
from leapray.inference.predict import predict
from leapray.models.directory import load_model
from leapray.recipe import parse_recipe
from leapray.training.trainer import train

pytestmark = pytest.mark.ray

MONTHS = {"train": {"start": "0001-02", "stop": "0001-03"}, "validation": {"start": "0001-03", "stop": "0001-04"}}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs of two months, and their rows as v2_rh needs them."""
    home = tmp_path_factory.mktemp("sets")
    synthesize(str(home / "pairs"), "low-res", steps=8, stride=400)
    done = convert(str(home / "pairs"), str(home / "flat"), variables=V2_RH, stride=400)
    assert done.rows == 8 * 384
    return home


def recipe(home: Path, name: str, variables: object, features: list[str]) -> dict[str, object]:
    return {
        "name": name,
        "data": {
            "prepared": str(home / f"prepared-{name}"),
            "variables": variables,
            "features": features,
            "sources": {"low_res": {"kind": "low-res", "path": str(home / "flat"), **MONTHS}},
        },
        "network": {"name": "ridge"},
        "training": {"run": str(home / name), "epochs": 1, "batch_size": 64},
    }


@pytest.fixture(scope="module")
def models(home: Path) -> dict[str, str]:
    """A model of each set, from the same rows."""
    found = {}
    for name, variables, features in (("rh", "v2_rh", ["relative_humidity"]), ("kaggle", "v2_kaggle", [])):
        loaded = parse_recipe(recipe(home, name, variables, features))
        prepared = prepare(loaded)
        assert prepared.transform.variables.name == variables
        found[name] = train(loaded).model_url
    return found


def test_models_of_two_sets_are_averaged_before_the_physics(home: Path, models: dict[str, str]) -> None:
    predict(list(models.values()), str(home / "flat"), str(home / "out"), members=True, names=list(models))
    rows = np.concatenate([read_pair(pair, variables=V2_RH).rows for pair in find_pairs(str(home / "pairs"))])
    x = torch.from_numpy(rows[:, : V2_RH.raw.width].copy())
    own = {name: load_model(url).emulator for name, url in models.items()}
    kaggle = x.index_select(1, torch.from_numpy(V2_RH.raw.places(KAGGLE.raw.columns)))
    with torch.no_grad():
        tendencies = [own["rh"].tendencies(x), own["kaggle"].tendencies(kaggle)]
        expected = own["rh"].physics(x, (tendencies[0] + tendencies[1]) / 2).numpy()
    order = np.argsort(read_ids(str(home / "out")).to_pylist())
    found = gather(str(home / "out"), KAGGLE.targets, np.argsort(order), len(rows))
    spread = expected.std(axis=0) + 1e-30
    np.testing.assert_allclose(found / spread, expected / spread, rtol=1e-4, atol=1e-4)
    ensemble, *members = evaluate(str(home / "out"), str(home / "flat"), str(home / "report"), report=False)
    assert {one.name for one in members} == {"rh", "kaggle"}
    assert 0 < ensemble.moments.score().skill <= ensemble.moments.score().attainable


def test_an_export_takes_what_the_coupled_model_passes(home: Path, models: dict[str, str]) -> None:
    with pytest.raises(UserError, match="kaggle556 does not pass cam_in_SNOWHICE, which the model needs"):
        export([models["rh"]], str(home / "refused"), "torchscript", layout="kaggle556")
    export(list(models.values()), str(home / "coupled"), "torchscript", layout="v2_rh557")
    run = torch.jit.load(str(home / "coupled" / "emulator.pt"))
    rows = read_pair(find_pairs(str(home / "pairs"))[0], variables=V2_RH).rows
    x = torch.from_numpy(rows[:, : V2_RH.raw.width].copy())
    rh = load_model(models["rh"]).emulator
    host = torch.cat(rh.transform.input_variables(x), dim=1)
    # the host passes the fill value
    host[:, V2_RH.inputs["cam_in_SNOWHICE"]] = x[:, V2_RH.raw["cam_in_SNOWHICE"]]
    kaggle = x.index_select(1, torch.from_numpy(V2_RH.raw.places(KAGGLE.raw.columns)))
    with torch.no_grad():
        mean = (rh.tendencies(x) + load_model(models["kaggle"]).emulator.tendencies(kaggle)) / 2
        expected = rh.physics(x, mean)
        found = run(host)
    spread = expected.std(dim=0) + 1e-30
    torch.testing.assert_close(found / spread, expected / spread, rtol=1e-4, atol=1e-4)
    assert torch.isfinite(run(torch.full((1, 557), torch.nan))).all()


def test_rows_of_fewer_columns_are_refused_by_name(home: Path, tmp_path: Path, models: dict[str, str]) -> None:
    convert(str(home / "pairs"), str(tmp_path / "flat"), stride=400)
    values = recipe(tmp_path, "rh", "v2_rh", [])
    with pytest.raises(
        UserError,
        match=r"column cam_in_SNOWHICE missing, expected sample_id and the 925 columns of .*`leapray convert --variables v2_rh`",
    ):
        prepare(parse_recipe(values))
    with pytest.raises(UserError, match="column cam_in_SNOWHICE missing"):
        predict([models["rh"]], str(tmp_path / "flat"), str(tmp_path / "out"))
    with pytest.raises(UserError, match="variables"):
        convert(str(home / "pairs"), str(home / "flat"), stride=400)
