"""Models that are each an actor of their own: the same predictions, whoever dies."""

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from ray.util.state import list_actors, list_placement_groups

from leapray.climsim.schema import TARGETS
from leapray.data.moments import Moments
from leapray.data.transform import Fitting
from leapray.inference.parts import member_directory
from leapray.inference.predict import predict
from leapray.models.directory import save_model
from leapray.models.registry import build_network
from leapray.recipe import Choice
from tests.samples import random_rows, write_flat

pytestmark = pytest.mark.ray
NAMES = ("one", "two", "three")


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_flat(tmp_path_factory.mktemp("flat"))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("models")
    return [saved(folder / name, seed, Choice(name="mlp", options={"hidden": [8]})) for seed, name in enumerate(NAMES)]


def saved(directory: Path, seed: int, network: Choice) -> str:
    torch.manual_seed(seed)
    transform = Fitting(Choice(name="standard"), ()).fit(Moments.of(random_rows(200)), {})
    save_model(str(directory), build_network(network.name, network.options).state_dict(), network, transform)
    return str(directory)


def table(directory: str) -> pa.Table:
    return pa.concat_tables(pq.read_table(path) for path in sorted(Path(directory).glob("part-*.parquet")))


def alive(kind: str) -> list[int]:
    """Processes of the actors of a class."""
    return [actor.pid for actor in list_actors(filters=[("state", "=", "ALIVE")]) if actor.class_name.startswith(kind)]


def settles(holds: Callable[[], bool]) -> bool:
    """Whether it holds in the end; Ray begins and ends processes a moment after it was told to."""
    deadline = time.monotonic() + 60
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def test_models_apart_predict_what_they_predict_together(flat: Path, models: list[str], tmp_path: Path, ray_cluster: None) -> None:
    weights = np.random.default_rng(0).dirichlet(np.ones(3), TARGETS.width).T
    given = {"weights": weights, "members": True, "names": NAMES}
    with ThreadPoolExecutor(1) as pool:
        seen = pool.submit(settles, lambda: len(alive("_Model")) == 3)
        done = predict(models, str(flat), str(tmp_path / "apart"), apart=True, **given)
    together = predict(models, str(flat), str(tmp_path / "together"), apart=False, **given)
    assert done.rows == together.rows == 96
    assert seen.result()
    for one, other in [(done.url, together.url), *((member_directory(done.url, n), member_directory(together.url, n)) for n in NAMES)]:
        found, expected = table(one), table(other)
        assert found.select(["sample_id", "row"]).equals(expected.select(["sample_id", "row"]))
        for name in TARGETS.columns:
            np.testing.assert_allclose(found[name].to_numpy(), expected[name].to_numpy(), rtol=1e-5, atol=1e-9, err_msg=name)


def test_nothing_of_them_is_left_when_the_prediction_is_done(flat: Path, models: list[str], tmp_path: Path, ray_cluster: None) -> None:
    predict(models, str(flat), str(tmp_path / "apart"), apart=True)
    assert settles(lambda: not alive("_Model"))
    assert settles(lambda: not [place for place in list_placement_groups() if place.state not in ("REMOVED",)])


@pytest.mark.parametrize("dies", ["model", "predictor"])
def test_one_that_is_killed_among_rows_is_begun_again_with_them(
    flat: Path, models: list[str], tmp_path: Path, ray_cluster: None, dies: str
) -> None:
    reached, gate = tmp_path / "reached", tmp_path / "gate"
    options = {"reached": str(reached), "gate": str(gate)}
    waiting = saved(tmp_path / "waiting", 3, Choice(name="tests.inference.waiting:Waiting", options=options))

    def kill() -> bool:
        found = settles(lambda: reached.exists() and reached.read_text() != "")
        os.kill(int(reached.read_text()) if dies == "model" else alive("MapWorker")[0], signal.SIGKILL)
        reached.unlink()
        gate.touch()
        return found

    with ThreadPoolExecutor(1) as pool:
        killed = pool.submit(kill)
        done = predict([*models, waiting], str(flat), str(tmp_path / "killed"), apart=True)
    assert killed.result()
    assert reached.exists()
    assert done.rows == 96
    expected = table(predict([*models, waiting], str(flat), str(tmp_path / "left alone")).url)
    found = table(done.url)
    for name in TARGETS.columns:
        np.testing.assert_allclose(found[name].to_numpy(), expected[name].to_numpy(), rtol=1e-5, atol=1e-9, err_msg=name)
