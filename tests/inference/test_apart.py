"""Models that are each an actor of their own: the same predictions, whoever dies."""

import gc
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
import ray
import torch
from ray.util.state import list_actors, list_placement_groups

from leapray.climsim.schema import KAGGLE
from leapray.data.fitting import Fitting
from leapray.data.moments import Moments
from leapray.errors import UserError
from leapray.inference import predict as predicting
from leapray.inference.actors import Actors
from leapray.inference.parts import member_directory
from leapray.inference.predict import predict
from leapray.inference.weights import Combination
from leapray.models.directory import save_model
from leapray.models.registry import build_network
from leapray.recipe import Choice
from tests.columns import CHANNELS, TARGETS
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
    transform = Fitting(KAGGLE, Choice(name="standard"), ()).fit(Moments.of(random_rows(200)), {})
    save_model(str(directory), build_network(network.name, network.options, CHANNELS).state_dict(), network, transform)
    return str(directory)


def table(directory: str) -> pa.Table:
    return pa.concat_tables(pq.read_table(path) for path in sorted(Path(directory).glob("part-*.parquet")))


def here() -> str:
    """This session's cluster, among those that other tests may have started."""
    return str(ray.get_runtime_context().gcs_address)


def alive(kind: str) -> list[int]:
    """Processes of the actors of a class."""
    return [actor.pid for actor in list_actors(here(), filters=[("state", "=", "ALIVE")]) if actor.class_name.startswith(kind)]


def settles(holds: Callable[[], bool]) -> bool:
    """Whether it holds in the end; Ray begins and ends processes a moment after it was told to."""
    deadline = time.monotonic() + 60
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def same(found: pa.Table, expected: pa.Table) -> None:
    assert found.select(["sample_id", "row"]).equals(expected.select(["sample_id", "row"]))
    for name in TARGETS.columns:
        np.testing.assert_allclose(found[name].to_numpy(), expected[name].to_numpy(), rtol=1e-5, atol=1e-9, err_msg=name)


def places() -> list[str]:
    return [place.name for place in list_placement_groups(here()) if place.state != "REMOVED" and place.name.startswith("leapray-")]


def test_models_apart_predict_what_they_predict_together(flat: Path, models: list[str], tmp_path: Path, ray_cluster: None) -> None:
    weights = np.random.default_rng(0).dirichlet(np.ones(3), TARGETS.width).T
    given = {"weights": Combination.of(weights), "members": True, "names": NAMES}
    with ThreadPoolExecutor(1) as pool:
        seen = pool.submit(settles, lambda: len(alive("_Model")) >= 3)
        done = predict(models, str(flat), str(tmp_path / "apart"), apart=True, **given)
    together = predict(models, str(flat), str(tmp_path / "together"), apart=False, **given)
    assert seen.result()
    assert done.rows == together.rows == 96
    same(table(done.url), table(together.url))
    for name in NAMES:
        same(table(member_directory(done.url, name)), table(member_directory(together.url, name)))


@pytest.mark.parametrize("dies", ["model", "predictor"])
def test_one_that_is_killed_among_rows_is_begun_again_with_them(
    flat: Path, models: list[str], tmp_path: Path, ray_cluster: None, dies: str
) -> None:
    source = str(sorted(flat.glob("*.parquet"))[0])
    calls, gate = tmp_path / "calls", tmp_path / "gate"
    options = {"calls": str(calls), "gate": str(gate)}
    waiting = saved(tmp_path / "waiting", 3, Choice(name="tests.inference.waiting:Waiting", options=options))

    def lines() -> list[list[str]]:
        return [line.split() for line in calls.read_text().splitlines()] if calls.exists() else []

    def kill() -> None:
        try:
            assert settles(lambda: len(lines()) == 1)
            (predictor,) = alive("MapWorker")
            os.kill(int(lines()[0][0]) if dies == "model" else predictor, signal.SIGKILL)
        finally:
            gate.touch()

    with ThreadPoolExecutor(1) as pool:
        killed = pool.submit(kill)
        done = predict([*models, waiting], source, str(tmp_path / "killed"), apart=True)
    killed.result()
    assert done.rows == 48
    (first, rows), (second, again) = lines()
    assert first != second
    assert rows == again
    same(table(done.url), table(predict([*models, waiting], source, str(tmp_path / "left alone")).url))


def test_one_that_dies_of_its_rows_ends_the_prediction(flat: Path, models: list[str], tmp_path: Path, ray_cluster: None) -> None:
    dying = saved(tmp_path / "dying", 0, Choice(name="tests.inference.waiting:Dying"))
    said = ""
    try:
        predict([*models[:1], dying], str(sorted(flat.glob("*.parquet"))[0]), str(tmp_path / "predictions"), apart=True)
    except UserError as error:
        said = str(error)
    assert "dying: its process died 4 times at the same work" in said
    # the predictor is Ray Data's, and lives as long as its error's traceback
    gc.collect()
    assert settles(lambda: not alive("_Model") and not alive("MapWorker") and not places())


def test_one_that_dies_while_it_loads_is_begun_again(flat: Path, models: list[str], tmp_path: Path, ray_cluster: None) -> None:
    loading = tmp_path / "loading"
    dying = saved(tmp_path / "dying", 0, Choice(name="tests.inference.waiting:Dying", options={"loading": str(loading)}))
    source = str(sorted(flat.glob("*.parquet"))[0])
    loading.write_text(str(os.getpid()))
    done = predict([*models, dying], source, str(tmp_path / "apart"), apart=True)
    assert not loading.exists()
    same(table(done.url), table(predict([*models, dying], source, str(tmp_path / "together"), apart=False).url))


def test_a_predictor_without_room_for_its_models_keeps_nobody_waiting(
    models: list[str], tmp_path: Path, ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two predictors of 1.5 CPUs, of which one finds as much for each of its three models among eight."""
    monkeypatch.setattr(predicting, "plan_actors", lambda *_, **__: Actors(2, True, 1.5, 0, 1))
    many = write_flat(tmp_path / "many", start="0001-02", stop="0001-10")
    with ThreadPoolExecutor(1) as pool:
        waited = pool.submit(settles, lambda: len(places()) == 2)
        done = predict(models, str(many), str(tmp_path / "apart"), apart=True)
    assert waited.result()
    assert (done.rows, done.files) == (384, 8)
    # and nothing is left, neither of the one that worked nor of the one that waited
    assert settles(lambda: not alive("_Model") and not alive("MapWorker") and not places())
