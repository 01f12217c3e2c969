from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from leapray.climsim.schema import TARGETS
from leapray.data.flat import list_pieces, read_piece
from leapray.data.moments import Moments
from leapray.data.transform import Fitting
from leapray.errors import UserError
from leapray.inference.predict import predict
from leapray.models.directory import load_model, save_model
from leapray.models.registry import build_network
from leapray.recipe import Choice
from tests.samples import random_rows, write_flat

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_flat(tmp_path_factory.mktemp("flat"))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    rows = random_rows(200)
    transform = Fitting(Choice(name="standard"), ()).fit(Moments.of(rows), {})
    network = Choice(name="mlp", options={"hidden": [8]})
    urls = [str(tmp_path_factory.mktemp("model")) for _ in range(2)]
    for seed, url in enumerate(urls):
        torch.manual_seed(seed)
        save_model(url, build_network(network.name, network.options).state_dict(), network, transform)
    return urls


def read(url: str) -> tuple[list[str], np.ndarray]:
    table = pa.concat_tables(pq.read_table(path) for path in sorted(Path(url).glob("*.parquet")))
    return table["sample_id"].to_pylist(), np.stack([table[name].to_numpy() for name in TARGETS.columns], axis=1)


def flat_inputs(flat: Path) -> tuple[list[str], torch.Tensor]:
    blocks = [block for piece in list_pieces(str(flat)) for block in read_piece(piece)]
    return [id_ for block in blocks for id_ in block.sample_id.to_pylist()], torch.from_numpy(np.concatenate([b.inputs for b in blocks]))


def test_every_row_is_predicted_once_as_the_emulator_gives_it(flat: Path, models: list[str], tmp_path: Path, ray_cluster: None) -> None:
    done = predict(models[:1], str(flat), str(tmp_path / "predictions"))
    ids, values = read(done.url)
    expected_ids, x = flat_inputs(flat)
    assert (done.rows, done.files) == (96, 2)
    assert ids == expected_ids
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
    with pytest.raises(UserError, match=f"1 rows hold NaN or Inf inputs, the first {bad_id}"):
        predict(models[:1], str(tmp_path / "bad.0001-02.parquet"), str(tmp_path / "predictions"))
    assert list((tmp_path / "predictions").glob("*part*")) == []
