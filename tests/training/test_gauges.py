import time
import urllib.request
from threading import Event

import pytest
from prometheus_client.parser import text_string_to_metric_families

from leapray.data.prepare import prepare
from leapray.training import gauges
from leapray.training.gauges import Gauges
from leapray.training.trainer import train
from tests.samples import sample_recipe, write_flat

STEP = {"event": "step", "step": 4, "steps": 8, "loss": 0.5, "rows_per_s": 100.0, "seconds": 2.0, "data_wait_share": 0.25, "cpus": 1.5}
VALIDATION = STEP | {"event": "validation", "val_loss": 0.75, "skill": 0.25, "r2": 0.5}
OFTEN = 5
EXPORT_SECONDS = 60.0
"""Ray's processes report every ten seconds."""


class Kept:
    """A metric that keeps what it is told, in the place of Ray's."""

    def __init__(self, name, description, tag_keys):
        assert description
        assert tag_keys == ("run", "rank")
        self.values, self.told = [], Event()

    def set_default_tags(self, tags):
        self.tags = tags
        return self

    def set(self, value):
        self.values.append(value)
        if len(self.values) == OFTEN:
            self.told.set()

    inc = set


@pytest.fixture
def kept(monkeypatch):
    made = {}

    def make(name, *arguments):
        made[name] = Kept(name, *arguments)
        return made[name]

    monkeypatch.setattr(gauges, "Gauge", make)
    monkeypatch.setattr(gauges, "Counter", make)
    return made


def last(kept):
    return {name.removeprefix("leapray_"): metric.values[-1] for name, metric in kept.items() if metric.values}


def test_a_rank_shows_its_share_of_the_rows_and_rank_0_the_training(kept):
    shown = Gauges("s3://bucket/run", rank=0, world=4)
    shown.add(STEP)
    shown.add(VALIDATION)
    own = {"rows": 50.0, "rows_per_second": 25.0, "data_wait_share": 0.25, "cpus": 1.5}
    common = {"step": 4, "steps": 8, "loss": 0.5, "validation_loss": 0.75, "validation_skill": 0.25, "validation_r2": 0.5}
    assert last(kept) == own | common
    assert kept["leapray_rows"].values == [50.0]
    assert {tuple(metric.tags.items()) for metric in kept.values()} == {(("run", "s3://bucket/run"), ("rank", "0"))}
    kept.clear()
    other = Gauges("s3://bucket/run", rank=1, world=4)
    other.add(STEP)
    other.add(VALIDATION)
    assert last(kept) == own


def test_a_run_with_letters_that_ray_does_not_take_is_percent_encoded(kept):
    Gauges("/läufe/a b", rank=0, world=1)
    assert {metric.tags["run"] for metric in kept.values()} == {"/l%C3%A4ufe/a b"}


def test_gauges_are_set_again_until_the_training_ends(kept, monkeypatch):
    monkeypatch.setattr(gauges, "_AGAIN_SECONDS", 0.0)
    with Gauges("run", 0, 1) as shown:
        shown.add(VALIDATION)
        assert kept["leapray_validation_r2"].told.wait(10)
    assert set(kept["leapray_validation_r2"].values) == {0.5}
    assert kept["leapray_rows"].values == []


def served(run):
    """Leapray's metrics of a run, by name and rank, as the agents of all nodes serve them now."""
    import ray

    found = {}
    for node in ray.nodes():
        with urllib.request.urlopen(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.labels.get("run") == run:
                    found[sample.name.removeprefix("ray_leapray_"), sample.labels["rank"]] = sample.value
    return found


@pytest.mark.ray
@pytest.mark.parametrize("workers", [0, 1])
def test_prometheus_is_served_what_a_training_logs(ray_cluster, tmp_path, workers):
    write_flat(tmp_path / "flat", stop="0001-05")
    recipe = sample_recipe(tmp_path, epochs=2, batch_size=16)
    recipe = recipe.model_copy(update={"resources": recipe.resources.model_copy(update={"workers": workers})})
    prepare(recipe)
    trained = train(recipe)
    deadline, found = time.monotonic() + EXPORT_SECONDS, {}
    while ("validation_r2", "0") not in found and time.monotonic() < deadline:
        Event().wait(0.2)
        found = served(trained.run_url)
    ended = trained.history[-1]
    assert found["validation_r2", "0"] == pytest.approx(ended["r2"])
    assert found["validation_loss", "0"] == pytest.approx(ended["val_loss"])
    assert found["rows_total", "0"] == 16 * ended["step"]
    assert found["step", "0"] == ended["step"]
    assert found["rows_per_second", "0"] > 0
    assert 0 <= found["data_wait_share", "0"] <= 1
