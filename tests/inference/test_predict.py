import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch

from leapray import storage
from leapray.climsim.calendar import Month
from leapray.climsim.schema import KAGGLE
from leapray.cluster import session
from leapray.data.fitting import Fitting
from leapray.data.flat import Selection, list_pieces, read_piece
from leapray.data.moments import Moments
from leapray.errors import UserError
from leapray.inference.parts import member_directory
from leapray.inference.predict import predict
from leapray.inference.weights import Combination
from leapray.models.directory import load_model, save_model
from leapray.models.registry import build_network
from leapray.recipe import Choice
from tests.columns import CHANNELS, INPUTS, TARGETS
from tests.samples import random_rows, spoil, write_flat

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_flat(tmp_path_factory.mktemp("flat"))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    rows = random_rows(200)
    transform = Fitting(KAGGLE, Choice(name="standard"), ()).fit(Moments.of(rows), {})
    network = Choice(name="mlp", options={"hidden": [8]})
    urls = [str(tmp_path_factory.mktemp(name) / "model") for name in ("plain", "swa")]
    for seed, url in enumerate(urls):
        torch.manual_seed(seed)
        save_model(url, build_network(network.name, network.options, CHANNELS).state_dict(), network, transform)
    return urls


def read(url: str) -> tuple[list[str], np.ndarray]:
    table = pa.concat_tables(pq.read_table(path) for path in sorted(Path(url).glob("*.parquet")))
    return table["sample_id"].to_pylist(), np.stack([table[name].to_numpy() for name in TARGETS.columns], axis=1)


def keys(url: str) -> list[int]:
    return [row for path in sorted(Path(url).glob("*.parquet")) for row in pq.read_table(path)["row"].to_pylist()]


def flat_inputs(flat: Path) -> tuple[list[str], torch.Tensor]:
    blocks = [block for piece in list_pieces(str(flat)) for block in read_piece(piece)]
    return [id_ for block in blocks for id_ in block.sample_id.to_pylist()], torch.from_numpy(np.concatenate([b.inputs for b in blocks]))


@torch.inference_mode()
def tendencies(model: str, x: torch.Tensor) -> np.ndarray:
    return load_model(model).emulator.tendencies(x).numpy()


@torch.inference_mode()
def with_physics(model: str, x: torch.Tensor, y: np.ndarray) -> np.ndarray:
    return load_model(model).emulator.physics(x, torch.from_numpy(y)).numpy()


def test_every_row_is_predicted_once_as_the_emulator_gives_it(flat: Path, models: list[str], tmp_path: Path, ray_cluster: None) -> None:
    # Ray's metrics take no name that is not ASCII
    done = predict(models[:1], str(flat), str(tmp_path / "Läufe #1 100%"))
    ids, values = read(done.url)
    expected_ids, x = flat_inputs(flat)
    assert (done.rows, done.files) == (96, 2)
    assert ids == expected_ids
    assert keys(done.url) == [row for piece in list_pieces(str(flat)) for block in read_piece(piece) for row in block.row.tolist()]
    with torch.inference_mode():
        np.testing.assert_allclose(values, load_model(models[0]).emulator(x).numpy(), rtol=1e-5, atol=1e-7)


def test_several_models_are_averaged_before_the_physics(flat: Path, models: list[str], tmp_path: Path, ray_cluster: None) -> None:
    done = predict(models, str(flat), str(tmp_path / "predictions"))
    _, x = flat_inputs(flat)
    emulators = [load_model(model).emulator for model in models]
    with torch.inference_mode():
        mean = (emulators[0].tendencies(x) + emulators[1].tendencies(x)) / 2
        expected = emulators[0].physics(x, mean).numpy()
    np.testing.assert_allclose(read(done.url)[1], expected, rtol=1e-5, atol=1e-7)


def test_an_interrupted_prediction_makes_only_what_is_missing(flat: Path, models: list[str], tmp_path: Path, ray_cluster: None) -> None:
    url = str(tmp_path / "predictions")
    predict(models[:1], str(flat), url)
    before = read(url)
    kept, lost = sorted(Path(url).glob("*.parquet"))
    written = kept.stat().st_mtime_ns
    lost.unlink()
    predict(models[:1], str(flat), url)
    after = read(url)
    assert kept.stat().st_mtime_ns == written
    assert after[0] == before[0]
    np.testing.assert_array_equal(after[1], before[1])
    with pytest.raises(UserError, match="holds a prediction of other settings"):
        predict(models, str(flat), url)


def test_inputs_that_are_not_finite_are_refused_and_leave_no_part(flat: Path, models: list[str], tmp_path: Path, ray_cluster: None) -> None:
    table = pq.read_table(sorted(flat.glob("*.parquet"))[0])
    values = table["state_t_0"].to_numpy().copy()
    values[7] = np.inf
    pq.write_table(
        table.set_column(table.schema.get_field_index("state_t_0"), "state_t_0", pa.array(values)), tmp_path / "bad.0001-02.parquet"
    )
    bad_id = table["sample_id"][7].as_py()
    with pytest.raises(UserError, match=rf"bad\.0001-02\.parquet: state_t_0 of {bad_id} is inf, expected finite numbers"):
        predict(models[:1], str(tmp_path / "bad.0001-02.parquet"), str(tmp_path / "predictions"))
    assert list((tmp_path / "predictions").glob("*part*")) == []


def test_members_are_weighted_by_column_and_kept_as_they_are(flat: Path, models: list[str], tmp_path: Path, ray_cluster: None) -> None:
    weights = np.linspace(0, 1, TARGETS.width)
    done = predict(models, str(flat), str(tmp_path / "predictions"), weights=Combination.of(np.stack([weights, 1 - weights])), members=True)
    expected_ids, x = flat_inputs(flat)
    own = [tendencies(model, x) for model in models]
    ids, values = read(done.url)
    assert ids == expected_ids
    np.testing.assert_allclose(values, with_physics(models[0], x, weights * own[0] + (1 - weights) * own[1]), rtol=1e-5, atol=1e-7)
    for name, expected in zip(storage.short_names(models), own, strict=True):
        ids, values = read(member_directory(done.url, name))
        assert ids == expected_ids
        assert keys(member_directory(done.url, name)) == keys(done.url)
        np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-7)


def test_a_piece_without_its_seal_is_made_again_with_its_members(flat: Path, models: list[str], tmp_path: Path, ray_cluster: None) -> None:
    url = str(tmp_path / "predictions")
    predict(models, str(flat), url, members=True)
    swa = member_directory(url, storage.short_names(models)[1])
    before = read(url), read(swa)
    for path in (Path(url) / "part-000001.parquet", Path(swa) / "part-000001.parquet"):
        path.unlink()
    assert predict(models, str(flat), url, members=True).rows == 96
    after = read(url), read(swa)
    for (ids, values), (ids_after, values_after) in zip(before, after, strict=True):
        assert ids_after == ids
        np.testing.assert_array_equal(values_after, values)


def test_a_finished_prediction_returns_without_a_cluster(
    flat: Path, models: list[str], tmp_path: Path, ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = predict(models[:1], str(flat), str(tmp_path / "predictions"))
    monkeypatch.setattr(session, "connected", lambda: pytest.fail("a cluster is asked for"))
    assert predict(models[:1], str(flat), str(tmp_path / "predictions")) == first
    (tmp_path / "predictions" / "stray.parquet").touch()
    with pytest.raises(UserError, match=r"stray\.parquet: is no part of this prediction"):
        predict(models[:1], str(flat), str(tmp_path / "predictions"))


def test_a_place_is_bound_to_weights_members_and_rows(flat: Path, models: list[str], tmp_path: Path, ray_cluster: None) -> None:
    url, weights = str(tmp_path / "predictions"), Combination.of(np.full((1, TARGETS.width), 0.5))
    predict(models[:1], str(flat), url, weights=weights)
    for change in (
        {"weights": Combination.of(2 * weights.weights)},
        {"weights": Combination(weights.weights, weights.constant + 1)},
        {"members": True},
        {"selection": Selection(stride=2)},
        {"kind": "low-res"},
    ):
        with pytest.raises(UserError, match="holds a prediction of other settings"):
            predict(models[:1], str(flat), url, **({"weights": weights} | change))


def test_only_the_selected_months_and_steps_are_predicted(flat: Path, models: list[str], tmp_path: Path, ray_cluster: None) -> None:
    selection = Selection(start=Month.parse("0001-03"), stride=2, phase=1)
    done = predict(models[:1], str(flat), str(tmp_path / "predictions"), selection=selection)
    chosen = [row for piece in list_pieces(str(flat), selection) for block in read_piece(piece) for row in block.row.tolist()]
    assert done.rows == len(chosen) == 24
    assert keys(done.url) == chosen
    with pytest.raises(UserError, match="no rows"):
        predict(models[:1], str(flat), str(tmp_path / "none"), selection=Selection(stride=7, phase=6))


def test_a_csv_is_predicted_row_by_row(flat: Path, models: list[str], tmp_path: Path, ray_cluster: None) -> None:
    table = pa.concat_tables(pq.read_table(path) for path in sorted(flat.glob("*.parquet")))
    pyarrow.csv.write_csv(table.select(["sample_id", *INPUTS.columns]), tmp_path / "test.csv")
    done = predict(models[:1], str(tmp_path / "test.csv"), str(tmp_path / "predictions"))
    ids, values = read(done.url)
    _, x = flat_inputs(flat)
    assert done.rows == 96
    assert ids == table["sample_id"].to_pylist()
    np.testing.assert_allclose(values, with_physics(models[0], x, tendencies(models[0], x)), rtol=1e-5, atol=1e-7)


def test_a_file_without_rows_is_refused(flat: Path, models: list[str], tmp_path: Path, ray_cluster: None) -> None:
    pq.write_table(pq.read_table(sorted(flat.glob("*.parquet"))[0]).slice(0, 0), tmp_path / "empty.parquet")
    with pytest.raises(UserError, match=r"empty\.parquet: no rows"):
        predict(models[:1], str(tmp_path / "empty.parquet"), str(tmp_path / "predictions"))


def test_models_rows_and_destinations_that_are_taken_for_each_other_are_told(
    flat: Path, models: list[str], tmp_path: Path, ray_cluster: None
) -> None:
    with pytest.raises(UserError, match=r"lies in .*, which is read for it; choose a place outside"):
        predict(models[:1], str(flat), str(flat / "predictions"))
    with pytest.raises(UserError, match="is a model, expected the rows to predict"):
        predict(models[:1], models[1], str(flat))
    with pytest.raises(UserError, match=r"not a model directory .* is one"):
        predict([str(Path(models[0]).parent)], str(flat), str(tmp_path / "predictions"))
    with pytest.raises(UserError, match="is given twice, and would count twice"):
        predict([*models, f"{models[0]}/"], str(flat), str(tmp_path / "predictions"))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="/file: is a file"):
        predict(models[:1], str(flat), str(tmp_path / "file"))
    assert not (flat / "predictions").exists()


def test_a_missing_column_and_a_folder_that_is_no_model_are_refused(
    flat: Path, models: list[str], tmp_path: Path, ray_cluster: None
) -> None:
    table = pq.read_table(sorted(flat.glob("*.parquet"))[0]).drop_columns(["state_u_3"])
    pq.write_table(table, tmp_path / "short.parquet")
    with pytest.raises(UserError, match=r"short\.parquet: column state_u_3 missing"):
        predict(models[:1], str(tmp_path / "short.parquet"), str(tmp_path / "predictions"))
    with pytest.raises(UserError, match="not a model directory"):
        predict([str(tmp_path)], str(flat), str(tmp_path / "predictions"))
    assert not (tmp_path / "predictions").exists()


@pytest.mark.parametrize(
    ("share", "words"),
    [(1.0, "Ray finds none here")] + [(share, f"GPU share {share:g}: expected more") for share in (0.0, 1.5, float("nan"))],
)
def test_gpus_that_are_not_there_are_refused(flat: Path, models: list[str], tmp_path: Path, ray_cluster: None, share, words) -> None:
    with pytest.raises(UserError, match=words):
        predict(models[:1], str(flat), str(tmp_path / "predictions"), use_gpu=True, gpu_share=share)


def test_a_drawn_share_of_another_seed_is_another_prediction(flat: Path, models: list[str], tmp_path: Path, ray_cluster: None) -> None:
    url = str(tmp_path / "predictions")
    predict(models[:1], str(flat), url, selection=Selection(fraction=0.5, seed=1))
    with pytest.raises(UserError, match="holds a prediction of other settings"):
        predict(models[:1], str(flat), url, selection=Selection(fraction=0.5, seed=2))


def test_a_file_that_joins_the_source_beside_the_selection_changes_nothing(models: list[str], tmp_path: Path, ray_cluster: None) -> None:
    source, url = write_flat(tmp_path / "flat", start="0001-03", stop="0001-05"), str(tmp_path / "predictions")
    selection = Selection(start=Month.parse("0001-03"))
    predict(models[:1], str(source), url, selection=selection)
    before = read(url)
    write_flat(source, start="0001-02", stop="0001-03")
    assert predict(models[:1], str(source), url, selection=selection).rows == 96
    after = read(url)
    assert after[0] == before[0]
    np.testing.assert_array_equal(after[1], before[1])


def test_a_part_of_another_prediction_is_told(flat: Path, models: list[str], tmp_path: Path, ray_cluster: None) -> None:
    url = str(tmp_path / "predictions")
    predict(models[:1], str(flat), url)
    shutil.copy(f"{url}/part-000001.parquet", f"{url}/part-000002.parquet")
    with pytest.raises(UserError, match=r"part-000002\.parquet: is no part of this prediction of 2 parts"):
        predict(models[:1], str(flat), url)


def test_rows_that_are_not_finite_are_left_out_where_asked_and_told(models: list[str], tmp_path: Path, ray_cluster: None) -> None:
    source, notes = write_flat(tmp_path / "flat"), []
    first = sorted(source.glob("*.parquet"))[0]
    ids = spoil(first, "state_t_0", [0, 7])
    done = predict(models[:1], str(source), str(tmp_path / "predictions"), members=True, bad_rows="drop", notice=notes.append)
    expected_ids, x = flat_inputs(source)
    good = [number for number, id_ in enumerate(expected_ids) if id_ not in ids]
    found, values = read(done.url)
    assert done.rows == 94
    assert found == [expected_ids[number] for number in good]
    np.testing.assert_allclose(values, with_physics(models[0], x[good], tendencies(models[0], x[good])), rtol=1e-5, atol=1e-7)
    assert notes == [f"{source}: left out 2 row(s) whose inputs hold NaN or Inf"]


def test_rows_of_which_none_can_be_used_are_no_prediction_however_often_it_is_asked_for(
    models: list[str], tmp_path: Path, ray_cluster: None
) -> None:
    source = write_flat(tmp_path / "flat", stop="0001-03", steps=1)
    spoil(next(source.glob("*.parquet")), "state_t_0", list(range(8)))
    for _ in range(2):
        with pytest.raises(UserError, match="no rows"):
            predict(models[:1], str(source), str(tmp_path / "predictions"), bad_rows="drop")


def test_rows_without_a_column_kind_have_the_keys_of_the_kind_that_is_given(models: list[str], tmp_path: Path, ray_cluster: None) -> None:
    source = write_flat(tmp_path / "flat")
    expected = [row for piece in list_pieces(str(source)) for block in read_piece(piece) for row in block.row.tolist()]
    for path in source.glob("*.parquet"):
        pq.write_table(pq.read_table(path).drop_columns(["kind"]), path)
    assert keys(predict(models[:1], str(source), str(tmp_path / "predictions"), kind="low-res").url) == expected
