import errno
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import r2_score

from leapray.data.flat import list_pieces, read_piece
from leapray.data.prepare import prepare
from leapray.data.shards import MANIFEST
from leapray.errors import UserError
from leapray.models.directory import load_model
from leapray.recipe import Choice, Resources, parse_recipe
from leapray.training import checkpoint
from leapray.training.row_gradients import RowGradients
from leapray.training.trainer import train
from tests.columns import LEARNED
from tests.samples import read_split, recipe_values, sample_recipe, write_flat

pytestmark = pytest.mark.ray

TRAINING_ROWS, VALIDATION_ROWS = 96, 48


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("trainer")


@pytest.fixture(scope="module")
def prepared(ray_cluster, root):
    write_flat(root / "flat", stop="0001-05")
    return prepare(sample_recipe(root))


@pytest.fixture
def make(prepared, root, tmp_path):
    def recipe(run="run", workers=0, **training):
        settings = {"run": str(tmp_path / run), "epochs": 2, "batch_size": 16} | training
        return sample_recipe(root, **settings).model_copy(update={"resources": Resources(workers=workers)})

    return recipe


def curve(trained):
    return np.concatenate([record["loss_curve"] for record in trained.history])


def test_trains_writes_the_best_model_and_returns_at_once_when_asked_again(ray_cluster, make, prepared):
    recipe = make()
    seen = []
    trained = train(recipe, seen.append)
    assert [record["epoch"] for record in trained.history] == [1, 2]
    assert [record for record in seen if record["event"] == "validation"] == trained.history
    assert len(curve(trained)) == 2 * (TRAINING_ROWS // 16)

    shards = list(read_split(prepared, "validation"))
    inputs, targets = (np.concatenate([rows[key] for rows in shards]) for key in ("inputs", "targets"))
    emulator = load_model(trained.model_url).emulator
    x = torch.from_numpy(inputs)
    with torch.no_grad():
        truth, found = (prepared.transform.physical_truth(z, x).numpy() for z in (torch.from_numpy(targets), emulator.network(x)))
    r2 = r2_score(truth[:, LEARNED], found[:, LEARNED], multioutput="raw_values")
    assert trained.best["r2"] == pytest.approx(r2.mean(), abs=1e-6)
    assert trained.best["r2_median"] == pytest.approx(np.median(r2), abs=1e-6)
    assert trained.best["score"] == trained.best["skill"] == max(record["skill"] for record in trained.history)
    assert trained.best["val_rows"] == len(targets) == VALIDATION_ROWS

    files = {path: path.stat().st_mtime_ns for path in Path(trained.run_url).rglob("*") if path.is_file()}
    again = train(recipe, lambda record: pytest.fail("a finished run trained again"))
    assert again == trained
    assert {path: path.stat().st_mtime_ns for path in Path(trained.run_url).rglob("*") if path.is_file()} == files


def test_every_run_may_be_profiled_and_goes_on_without(ray_cluster, make, tmp_path):
    trained = train(make(profile={"start": 2, "steps": 3}))
    events = json.loads((tmp_path / "run" / "profile" / "rank-0.json").read_bytes())["traceEvents"]
    assert sum(event.get("name") == "forward" and event.get("cat") == "user_annotation" for event in events) == 3
    assert train(make()).history == trained.history


def test_rows_that_fill_no_batch_are_told_once(ray_cluster, make):
    told = []
    trained = train(make(batch_size=40), notice=told.append)
    assert trained.best["trained_rows"] in (80, 160)
    assert [sentence.split(" fill")[0] for sentence in told] == ["16 of 96 training rows (17 %)"]
    train(make("even"), notice=told.append)
    assert len(told) == 1


def test_a_model_that_is_written_is_not_lost_with_its_log(ray_cluster, make):
    told, full = [], OSError(errno.ENOSPC, "No space left on device")

    def follow(record):
        if record["event"] == "validation" and record["epoch"] == 2:
            raise full

    trained = train(make(), follow, notice=told.append)
    assert [record["epoch"] for record in trained.history] == [1, 2]
    assert [trained.model_url in sentence and "No space left" in sentence for sentence in told] == [True]


@pytest.mark.parametrize(("how", "divided"), [("rows", True), ("operators", False), (None, False)])
def test_threads_divide_what_the_recipe_says(ray_cluster, make, monkeypatch, how, divided):
    steps, add = [], RowGradients.add
    monkeypatch.setattr(RowGradients, "add", lambda *args: steps.append(1) or add(*args))
    torch.set_num_threads(2)
    recipe = make(epochs=1)
    train(recipe.model_copy(update={"resources": Resources(workers=0, cpu_threading=how)}))
    assert len(steps) == (TRAINING_ROWS // 16 if divided else 0)
    # the same run, whatever its threads divide
    train(recipe)


def test_refuses_before_anything_runs(ray_cluster, make, tmp_path):
    train(make())
    with pytest.raises(UserError, match=r"another recipe \(training\.batch_size: 16, now 32\)"):
        train(make(batch_size=32))
    with pytest.raises(UserError, match="96 training rows do not fill one batch of 200"):
        train(make("large", batch_size=200))
    with pytest.raises(UserError, match="delta"):
        train(make("loss", loss={"name": "huber", "options": {"delta": 0}}))
    with pytest.raises(UserError, match="48 workers"):
        train(make("wide", workers=48, lanes=48, batch_size=96))
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_refuses_prepared_data_that_is_missing_unfinished_or_of_another_recipe(prepared, make, tmp_path):
    recipe = make()

    def train_on(**changes):
        train(recipe.model_copy(update={"data": recipe.data.model_copy(update=changes)}))

    with pytest.raises(UserError, match=r"nowhere: holds no prepared data"):
        train_on(prepared=str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"prepared by another recipe \(seed: 0, now 1\)"):
        train_on(seed=1)
    unfinished = shutil.copytree(prepared.url, tmp_path / "unfinished")
    (unfinished / "validation" / "low_res" / MANIFEST).unlink()
    with pytest.raises(UserError, match=r"unfinished \(validation of low_res is missing\)"):
        train_on(prepared=str(unfinished))
    assert not Path(recipe.training.run).exists()


def test_a_run_that_was_cut_off_goes_on_from_its_last_checkpoint_and_ends_the_same(ray_cluster, make, monkeypatch):
    whole = train(make("whole", epochs=3))

    class PowerCutError(Exception):
        pass

    def cut(folder, keep, prune=checkpoint.prune):
        prune(folder, keep)
        if len(checkpoint.complete(folder)) == 2:
            raise PowerCutError

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "prune", cut)
        with pytest.raises(PowerCutError):
            train(make("cut", epochs=3))
    resumed = train(make("cut", epochs=3))
    np.testing.assert_array_equal(curve(resumed), curve(whole))
    ours, theirs = (load_model(trained.model_url).emulator.network.state_dict() for trained in (resumed, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert len(checkpoint.complete(f"{resumed.run_url}/checkpoints")) == 2


def test_a_checkpoint_of_other_data_is_refused(ray_cluster, make, prepared, monkeypatch):
    recipe = make(keep_best=0)
    with monkeypatch.context() as patch:
        patch.setattr("leapray.training.trainer.save_model", lambda *_, **__: (_ for _ in ()).throw(KeyError("lost")))
        with pytest.raises(KeyError):
            train(recipe)
    url = checkpoint.complete(f"{recipe.training.run}/checkpoints")[-1]
    state = checkpoint.load(url)
    checkpoint.save(url, state | {"transform": "another"})
    with pytest.raises(UserError, match=f"transform another, but .* {prepared.transform.digest()}"):
        train(recipe)


def test_a_diverging_loss_stops_the_run_as_the_users_mistake(ray_cluster, make):
    with pytest.raises(UserError, match=r"loss is (nan|inf) .*epoch"):
        train(make(optimizer={"name": "adamw", "options": {"lr": 1e30}}, loss={"name": "mse"}))


def test_a_worker_that_dies_inside_an_epoch_is_replaced_and_the_curve_is_the_same(ray_cluster, make, tmp_path):
    def recipe(name, workers, **options):
        network = Choice(name="tests.training.dying:Dying", options=options)
        return make(name, workers=workers, epochs=2, batch_size=8, checkpoint_seconds=1e-9).model_copy(update={"network": network})

    whole = train(recipe("whole", 0))
    grave = tmp_path / "grave"
    replaced = train(recipe("replaced", 1, grave=str(grave), run=str(tmp_path / "replaced"), calls=3))
    # first steps are taken one by one, to see how long they take, and a checkpoint follows each
    assert 0 < int(grave.read_text()[-1]) < 4
    np.testing.assert_allclose(curve(replaced), curve(whole), rtol=2e-6)


def test_two_workers_and_one_give_the_same_loss_curve(ray_cluster, make):
    one, two = train(make("one")), train(make("two", workers=2))
    np.testing.assert_allclose(curve(two), curve(one), rtol=2e-6)
    for key in ("val_loss", "score", "skill", "r2", "val_rows"):
        assert [r[key] for r in two.history] == pytest.approx([r[key] for r in one.history], rel=1e-5), key


def test_a_mistake_found_by_a_worker_ends_the_training_without_a_second_try(ray_cluster, make):
    recipe = make(workers=1, optimizer={"name": "adamw", "options": {"lr": 1e30}}, loss={"name": "mse"})
    with pytest.raises(UserError, match=r"loss is (nan|inf) .*epoch") as caught:
        train(recipe)
    assert type(caught.value.__cause__).__name__ == "ControllerError"


@pytest.mark.parametrize("stream_from", ["shards", "flat"])
def test_pairs_of_sources_with_features_train_and_the_model_takes_raw_columns(ray_cluster, root, prepared, tmp_path, stream_from):
    write_flat(tmp_path / "high", "high-res", stop="0001-04", steps=9, seed=7)
    values = recipe_values(root, epochs=2, batch_size=16, pairs=True, run=str(tmp_path / "run"))
    values["data"] |= {
        "prepared": str(tmp_path / "prepared"),
        "scaling": {"name": "log-per-variable"},
        "features": ["liquid_partition", "air_total"],
        "stream_from": stream_from,
        "shuffle_rows": 100,
    }
    months = {"train": {"start": "0001-02", "stop": "0001-04"}}
    values["data"]["sources"]["high_res"] = {"kind": "high-res", "path": str(tmp_path / "high"), **months}
    recipe = parse_recipe(values)
    data = prepare(recipe)
    trained = train(recipe)
    # as many steps as the smaller source has halves of a batch
    assert len(curve(trained)) == 2 * (TRAINING_ROWS // 8)
    emulator = load_model(trained.model_url).emulator
    assert emulator.transform.feature_names == ["liquid_partition", "air_total"]
    (piece,) = list_pieces(str(root / "flat" / "low-res.0001-04.parquet"))
    (block,) = read_piece(piece)
    parts = list(read_split(data, "validation"))
    scaled = {row: values for part in parts for row, values in zip(part["row"].tolist(), part["inputs"], strict=True)}
    with torch.no_grad():
        found = emulator.tendencies(torch.from_numpy(block.inputs))
        expected = emulator.transform.unscale_targets(
            emulator.network(torch.from_numpy(np.stack([scaled[row] for row in block.row.tolist()]))), torch.from_numpy(block.inputs)
        )
    np.testing.assert_array_equal(found.numpy(), expected.numpy())
