import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from leapray import storage
from leapray.cli import app
from leapray.climsim.schema import KAGGLE
from leapray.console import digits
from leapray.data.fitting import Fitting
from leapray.data.flat import list_pieces, read_piece
from leapray.data.moments import Moments
from leapray.errors import UserError
from leapray.inference.ensemble.ensemble import Ensembled, ensemble
from leapray.inference.weights import read_weights
from leapray.models.directory import load_info, load_model, save_model
from leapray.models.emulator import Physics
from leapray.models.registry import build_network
from leapray.recipe import Choice, Recipe, parse_recipe
from tests.columns import CHANNELS, LEARNED, TARGETS
from tests.samples import random_rows, recipe_values, spoil, write_flat
from tests.target_tables import write_targets

pytestmark = pytest.mark.ray

BLEND, TEST = "low-res.0001-04.parquet", "low-res.0001-05.parquet"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Flat months with a snapshot every five days, and two models."""
    home = tmp_path_factory.mktemp("home")
    write_flat(home / "flat", stop="0001-06", stride=360)
    network = Choice(name="mlp", options={"hidden": [8]})
    for seed, (name, rows) in enumerate({"swa": 200, "ema": 120}.items()):
        torch.manual_seed(seed)
        transform = Fitting(KAGGLE, Choice(name="standard"), ()).fit(Moments.of(random_rows(rows, seed)), {})
        save_model(
            str(home / "runs" / name / "model"), build_network(network.name, network.options, CHANNELS).state_dict(), network, transform
        )
    return home


def recipe(home: Path, directory: Path, members: list[Any], *, test: bool = True, **options: Any) -> Recipe:
    values = recipe_values(home)
    source = values["data"]["sources"]["low_res"]
    source["blend"] = source.pop("validation")
    if test:
        source["test"] = {"start": "0001-05", "stop": "0001-06"}
    return parse_recipe(values | {"ensemble": {"directory": str(directory), "members": members, **options}})


def models(home: Path) -> list[str]:
    return [str(home / "runs" / name / "model") for name in ("swa", "ema")]


def truth(home: Path, name: str) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Ids, inputs and targets of a month."""
    blocks = [block for piece in list_pieces(str(home / "flat" / name)) for block in read_piece(piece)]
    ids = [id_ for block in blocks for id_ in block.sample_id.to_pylist()]
    return ids, np.concatenate([block.inputs for block in blocks]), np.concatenate([block.targets for block in blocks])


def read(directory: str) -> tuple[list[str], np.ndarray]:
    table = pa.concat_tables(pq.read_table(path) for path in sorted(Path(directory).glob("*.parquet")))
    return table["sample_id"].to_pylist(), np.stack([table[name].to_numpy() for name in TARGETS.columns], axis=1)


def tendencies(model: str, x: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return load_model(model).emulator.tendencies(torch.from_numpy(x)).numpy()


def with_physics(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return Physics(KAGGLE)(torch.from_numpy(x), torch.from_numpy(y)).numpy()


def as_older(done: Ensembled) -> list[dict[str, str]]:
    """The members of an ensemble as predictions of which no model is known."""
    return [
        {
            "name": member.name,
            "validation": f"{done.directory}/blend/low_res/_members/{member.name}",
            "test": f"{done.predictions}/low_res/_members/{member.name}",
        }
        for member in done.weights.members
    ]


def skill(home: Path, y: np.ndarray, prediction: np.ndarray) -> float:
    """By its definition, against the rows that the first model was trained on."""
    known = load_model(models(home)[0]).emulator.transform.statistics
    gained = np.square(y - known.mean).mean(axis=0) - np.square(y - prediction).mean(axis=0)
    return float(np.maximum(gained / np.maximum(y.var(axis=0), known.variance), -1)[LEARNED].mean())


def combined(done: Ensembled, members: list[np.ndarray]) -> np.ndarray:
    """The members' mean by the weights told, and the training mean where a column falls back to it."""
    weights = done.weights.matrix()
    mean = weights[0] * members[0] + weights[1] * members[1]
    for name, value in done.weights.fallback.items():
        mean[:, TARGETS.columns.index(name)] = value
    return mean


@pytest.fixture(scope="module")
def done(home: Path, tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Ensembled:
    return ensemble(recipe(home, tmp_path_factory.mktemp("ensemble"), models(home)))


def test_on_the_blend_months_the_solved_weights_score_at_least_the_plain_mean(done: Ensembled, home: Path) -> None:
    _, x, y = truth(home, BLEND)
    members = [tendencies(model, x) for model in models(home)]
    blend = done.weights.figures["blend"]
    assert blend["rows"] == len(y)
    assert blend["ensemble"] == pytest.approx(skill(home, y, combined(done, members)), abs=1e-6)
    assert blend["mean"] == pytest.approx(skill(home, y, (members[0] + members[1]) / 2), abs=1e-6)
    assert blend["members"] == pytest.approx({"swa": skill(home, y, members[0]), "ema": skill(home, y, members[1])}, abs=1e-6)
    assert blend["attainable"] == pytest.approx(skill(home, y, y), abs=1e-9)
    assert blend["ensemble"] >= max(blend["mean"], *blend["members"].values())
    # networks that were never trained are beaten by the training mean in most columns
    assert 0 < len(done.weights.fallback) < LEARNED.sum()


def test_the_test_months_are_predicted_with_the_physics_last_and_scored(done: Ensembled, home: Path) -> None:
    ids, x, y = truth(home, TEST)
    members = [tendencies(model, x) for model in models(home)]
    found_ids, values = read(f"{done.predictions}/low_res")
    assert found_ids == ids
    np.testing.assert_allclose(values, with_physics(x, combined(done, members)), rtol=1e-5, atol=1e-7)
    test = done.weights.figures["test"]
    assert test["ensemble"] == pytest.approx(skill(home, y, values), abs=1e-9)
    assert test["mean"] == pytest.approx(skill(home, y, with_physics(x, (members[0] + members[1]) / 2)), abs=1e-6)
    assert test["members"]["swa"] == pytest.approx(skill(home, y, with_physics(x, members[0])), abs=1e-6)
    assert test["from_mean"]["value"] == pytest.approx(test["ensemble"] - test["mean"])
    assert test["from_mean"]["low"] <= test["from_mean"]["value"] <= test["from_mean"]["high"]
    assert test["from_best"]["value"] == pytest.approx(test["ensemble"] - test["members"][test["best"]])


def test_the_weights_are_kept_for_predict_and_drawn(done: Ensembled, home: Path) -> None:
    kept = read_weights(done.url)
    np.testing.assert_array_equal(kept.of_models(models(home)[::-1]).weights, done.weights.combination([1, 0]).weights)
    assert kept.method == "solved"
    assert storage.read_bytes(f"{done.directory}/ensemble.png").startswith(b"\x89PNG")


def test_a_second_start_changes_nothing_and_other_weights_are_refused(done: Ensembled, home: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in Path(done.directory).rglob("*")}
    again = ensemble(recipe(home, Path(done.directory), models(home)))
    assert again.weights.figures == done.weights.figures
    assert {path: path.stat().st_mtime_ns for path in Path(done.directory).rglob("*")} == before
    with pytest.raises(UserError, match="holds an ensemble of other settings"):
        ensemble(recipe(home, Path(done.directory), models(home), weights="mean"))


def test_the_verb_shows_the_members_and_says_where_everything_is(done: Ensembled, home: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(recipe(home, Path(done.directory), models(home)).to_yaml())
    result = CliRunner().invoke(app, ["ensemble", str(tmp_path / "recipe.yaml")])
    assert result.exit_code == 0
    *_, last = result.output.splitlines()
    assert last == f"wrote the weights of 2 members to {done.url}, predictions of the test months to {done.predictions}"
    assert digits(done.weights.figures["test"]["ensemble"]) in result.output
    assert "test months: skill of the ensemble less the plain mean" in result.output


def test_what_was_cut_off_goes_on_with_what_is_there(done: Ensembled, home: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut"
    shutil.copytree(done.directory, cut)
    for lost in ("ensemble.json", "test/low_res/part-000000.parquet", "test/low_res/_members/swa/part-000000.parquet"):
        (cut / lost).unlink()
    kept = {path: path.stat().st_mtime_ns for path in cut.glob("blend/**/*.parquet")}
    again = ensemble(recipe(home, cut, models(home)))
    assert again.weights == done.weights
    assert {path: path.stat().st_mtime_ns for path in cut.glob("blend/**/*.parquet")} == kept
    np.testing.assert_array_equal(read(f"{again.predictions}/low_res")[1], read(f"{done.predictions}/low_res")[1])


def test_predictions_by_other_weights_are_never_taken_for_the_ensembles(done: Ensembled, home: Path, tmp_path: Path) -> None:
    ensemble(recipe(home, tmp_path, as_older(done)))
    (tmp_path / "ensemble.json").unlink()
    with pytest.raises(UserError, match="holds predictions of an ensemble of other settings"):
        ensemble(recipe(home, tmp_path, as_older(done), weights={"fixed": {"swa": 1}}))


def test_older_predictions_in_any_order_count_like_a_model(done: Ensembled, home: Path, tmp_path: Path, ray_cluster: None) -> None:
    places = {}
    for split, month, name in (("validation", BLEND, "old.csv"), ("test", TEST, "old.parquet")):
        ids, x, _ = truth(home, month)
        order = np.random.default_rng(0).permutation(len(ids))
        places[split] = str(tmp_path / split)
        (tmp_path / split).mkdir()
        (tmp_path / split / "notes.txt").touch()
        write_targets(tmp_path / split / name, [ids[index] for index in order], tendencies(models(home)[1], x)[order])
    notices: list[str] = []
    mixed = ensemble(recipe(home, tmp_path / "ensemble", [models(home)[0], {"name": "old", **places}]), notice=notices.append)
    assert [place for place in places.values() for notice in notices if place in notice and "notes.txt" in notice] == [*places.values()]
    np.testing.assert_allclose(mixed.weights.matrix(), done.weights.matrix(), atol=1e-6)
    np.testing.assert_allclose(read(f"{mixed.predictions}/low_res")[1], read(f"{done.predictions}/low_res")[1], rtol=1e-4, atol=1e-6)
    assert mixed.weights.figures["test"]["ensemble"] == pytest.approx(done.weights.figures["test"]["ensemble"], abs=1e-6)
    assert [member.model for member in mixed.weights.members] == [models(home)[0], None]


def test_an_ensemble_of_older_predictions_alone_knows_rows_by_their_keys(done: Ensembled, home: Path, tmp_path: Path) -> None:
    older = ensemble(recipe(home, tmp_path, as_older(done)))
    np.testing.assert_array_equal(older.weights.matrix(), done.weights.matrix())
    np.testing.assert_array_equal(read(f"{older.predictions}/low_res")[1], read(f"{done.predictions}/low_res")[1])


def test_older_predictions_that_miss_rows_are_refused(home: Path, tmp_path: Path, ray_cluster: None) -> None:
    ids, _, y = truth(home, BLEND)
    url = write_targets(tmp_path / "old.parquet", ids[3:], y[3:])
    with pytest.raises(UserError, match=f"old lacks predictions of 3 rows of .*{BLEND}, the first {ids[0]}; expected all rows of"):
        ensemble(recipe(home, tmp_path / "ensemble", [{"name": "old", "validation": url}], test=False))


def test_variants_that_failed_or_are_there_twice_are_left_out(home: Path, tmp_path: Path) -> None:
    entries = [("swa", "finished", "../runs/swa/model"), ("lost", "failed", "lost/model"), ("base", "base", models(home)[1])]
    variants = home / "variants" / "variants.json"
    storage.write_json(
        str(variants), {"name": "sample", "variants": [{"name": name, "state": state, "model": at} for name, state, at in entries]}
    )
    notes: list[str] = []
    done = ensemble(recipe(home, tmp_path, [str(variants), models(home)[1]], test=False, weights="mean"), notice=notes.append)
    assert [member.name for member in done.weights.members] == ["swa", "ema"]
    assert [member.weights_sha256 for member in done.weights.members] == [load_info(model).weights_sha256 for model in models(home)]
    assert done.predictions is None
    assert any("left out lost, which failed" in note for note in notes)
    assert any("has the same weights as" in note for note in notes)
    assert any("no test months" in note for note in notes)


def test_fixed_weights_are_taken_as_they_are(home: Path, tmp_path: Path, ray_cluster: None) -> None:
    done = ensemble(recipe(home, tmp_path, models(home), test=False, weights={"fixed": {"swa": 0.25, "ema": 0.75}}))
    np.testing.assert_array_equal(done.weights.matrix(), np.repeat([[0.25], [0.75]], TARGETS.width, axis=1))
    assert json.loads((tmp_path / "ensemble.json").read_text())["method"] == "fixed"


@pytest.mark.parametrize(
    ("members", "options", "sentence"),
    [
        (["runs/swa"], {}, "runs/swa is not a model directory; did you mean .*runs/swa/model"),
        (["runs/nothing"], {}, "runs/nothing: not a model directory"),
        (["runs/swa/model"], {"weights": {"fixed": {"ema": 1}}}, "ensemble.weights.fixed: 'ema' is not a member, expected swa"),
        (["runs/swa/model", {"name": "swa", "validation": "x"}], {}, "'swa' names predictions and a model"),
        (["runs/swa/model", {"name": "old", "validation": "x"}], {}, "old has no predictions of the test months, expected its key test"),
        (["runs/swa/model/model.json"], {}, "model.json: not a list of variants"),
    ],
)
def test_what_cannot_be_an_ensemble_is_refused_in_one_sentence(
    home: Path, tmp_path: Path, members: list[Any], options: dict[str, Any], sentence: str
) -> None:
    placed = [str(home / member) if isinstance(member, str) else member for member in members]
    with pytest.raises(UserError, match=sentence):
        ensemble(recipe(home, tmp_path, placed, **options))
    assert list(tmp_path.iterdir()) == []


def test_solving_needs_months(home: Path, tmp_path: Path) -> None:
    without = recipe(home, tmp_path, models(home))
    sources = {name: source.model_copy(update={"blend": None}) for name, source in without.data.sources.items()}
    without = without.model_copy(update={"data": without.data.model_copy(update={"sources": sources})})
    with pytest.raises(UserError, match="solved needs months, expected a source with blend or validation months"):
        ensemble(without)


def test_another_drawn_share_of_the_months_is_another_ensemble(home: Path, tmp_path: Path, ray_cluster: None) -> None:
    def drawn(seed: int) -> Recipe:
        asked = recipe(home, tmp_path, models(home), test=False)
        sources = {name: source.model_copy(update={"fraction": 0.7}) for name, source in asked.data.sources.items()}
        return asked.model_copy(update={"data": asked.data.model_copy(update={"sources": sources, "seed": seed})})

    ensemble(drawn(1))
    with pytest.raises(UserError, match="holds an ensemble of other settings"):
        ensemble(drawn(2))


def test_bad_rows_are_left_out_and_files_need_no_column_kind(home: Path, tmp_path: Path, ray_cluster: None) -> None:
    write_flat(tmp_path / "flat", stop="0001-06", stride=360)
    for path in (tmp_path / "flat").glob("*.parquet"):
        pq.write_table(pq.read_table(path).drop_columns(["kind"]), path)
    spoil(tmp_path / "flat" / BLEND, "state_t_0", [3])
    spoil(tmp_path / "flat" / BLEND, "ptend_t_0", [5])
    lost = spoil(tmp_path / "flat" / TEST, "state_t_0", [0, 9])

    def dropping(directory: str, members: list[Any]) -> Recipe:
        asked = recipe(tmp_path, tmp_path / directory, members)
        return asked.model_copy(update={"data": asked.data.model_copy(update={"bad_rows": "drop"})})

    notes: list[str] = []
    done = ensemble(dropping("ensemble", models(home)), notice=notes.append)
    rows = len(truth(home, BLEND)[0])
    assert done.weights.figures["blend"]["rows"] == rows - 2
    assert done.weights.figures["test"]["rows"] == rows - 2
    assert read(f"{done.predictions}/low_res")[0] == [id_ for id_ in truth(home, TEST)[0] if id_ not in lost]
    assert [note.partition(": ")[2] for note in notes if "left out" in note] == [
        f"left out {count} row(s) whose inputs hold NaN or Inf" for count in (1, 2)
    ]
    older = ensemble(dropping("older", as_older(done)))
    np.testing.assert_array_equal(older.weights.matrix(), done.weights.matrix())


def test_validation_months_are_named_where_they_choose(home: Path, tmp_path: Path, ray_cluster: None) -> None:
    asked = recipe(home, tmp_path, models(home), test=False, weights="mean")
    sources = {name: source.model_copy(update={"blend": None, "validation": source.blend}) for name, source in asked.data.sources.items()}
    done = ensemble(asked.model_copy(update={"data": asked.data.model_copy(update={"sources": sources})}))
    assert done.weights.figures["blend"]["split"] == "validation"
