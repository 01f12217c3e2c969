"""The whole road on object storage gives the bytes that it gives on a local disk, in calm and in stormy weather."""

import json
from pathlib import Path

import pytest

from leapray import storage
from leapray.climsim.synthetic import synthesize
from leapray.data.convert import convert
from leapray.data.prepare import prepare
from leapray.inference.predict import predict
from leapray.recipe import parse_recipe
from leapray.training.trainer import train
from tests.s3_server import Endpoint
from tests.samples import recipe_values

pytestmark = pytest.mark.ray

MONTHS = ("0001-02", "0001-03", "0001-04")
RESULTS = (".parquet", ".safetensors", "transform.json")


def road(root: str) -> dict[str, bytes]:
    """Raw pairs, flat files, shards, a model and predictions below ``root``: what each result holds, by name."""
    for month in MONTHS:
        synthesize(f"{root}/raw", "low-res", steps=3, columns=12, start=month, stride=20)
    convert(f"{root}/raw", f"{root}/flat")
    recipe = parse_recipe(json.loads(json.dumps(recipe_values(Path("/ROOT"))).replace("/ROOT", root)))
    prepare(recipe)
    trained = train(recipe)
    predict([trained.model_url], f"{root}/flat", f"{root}/predictions")
    return {name.removeprefix(root): storage.read_bytes(name) for name in storage.list_files(root) if name.endswith(RESULTS)}


@pytest.fixture(scope="module")
def local(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return road(str(tmp_path_factory.mktemp("road")))


@pytest.mark.parametrize("every", [0, 5], ids=["calm", "storm"])
def test_a_bucket_ends_up_with_the_same_bytes_as_a_disk(every: int, local: dict[str, bytes], s3: Endpoint, bucket: str) -> None:
    for folder in ("/flat/", "/prepared/train/", "/run/model/", "/predictions/"):
        assert any(name.startswith(folder) for name in local)
    s3.storm(every)
    remote = road(bucket)
    assert remote.keys() == local.keys()
    assert [name for name in local if remote[name] != local[name]] == []
