"""Models apart on the GPUs of a cluster: where Ray puts them, on two GPUs that it is told of, with networks that stay on the CPU."""

import json
import sys
from pathlib import Path

import pytest

from tests.ray_head import Head

PROCESS = """
import json, sys, time
import numpy as np, ray, torch
from leapray.cluster import session
from leapray.climsim.schema import KAGGLE
from leapray.inference.actors import plan_actors
from leapray.inference.apart import released
from leapray.inference.weights import Combination, mean_weights
from tests.samples import random_rows

class OnCpu:
    def __init__(self, model, variables, use_gpu, threads):
        from leapray.inference.emulators import Members
        assert use_gpu
        self.members = Members.load([model], torch.device("cpu"), variables)
    def loaded(self):
        pass
    def gpus(self):
        return ray.get_gpu_ids()
    def tendencies(self, inputs):
        return self.members.tendencies(inputs.copy(order="K"))[0]

@ray.remote(num_cpus=1)
class Predictor:
    def __init__(self, models, actors):
        from leapray.inference import apart
        apart._Model = OnCpu
        self.apart = apart.Apart(models, KAGGLE, Combination.of(mean_weights(len(models), KAGGLE.targets)), actors)
    def look(self, inputs):
        rows = len(self.apart.predict(np.asfortranarray(inputs)).ensemble)
        return rows, [int(gpu) for model in self.apart._begun for gpu in ray.get(model.gpus.remote())]

models, found = sys.argv[1:], []
session.start()
for share in (None, 0.5):
    actors = plan_actors(len(models), 10, use_gpu=True, share=share)
    with released(actors):
        predictors = [Predictor.remote(models, actors) for _ in range(actors.predictors)]
        found.append(ray.get([one.look.remote(random_rows(5)[:, :556]) for one in predictors]))
    del predictors
    deadline = time.monotonic() + 60
    while ray.available_resources().get("GPU") != 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    found.append(ray.available_resources().get("GPU"))
print(json.dumps(found))
"""


@pytest.mark.ray
def test_the_models_of_a_predictor_share_a_gpu_or_have_what_they_are_given(tmp_path: Path) -> None:
    from tests.inference.exported import saved

    models = [str(saved(tmp_path / str(number), "linear")) for number in range(3)]
    # whether they are hidden, as where tests are to find none, is looked at
    with Head(cpus=2, environment={"CUDA_VISIBLE_DEVICES": "0,1"}, gpus=2) as head:
        ran = head.run([sys.executable, "-c", PROCESS, *models])
    assert ran.returncode == 0, ran.stderr
    filled, free, halves, free_again = json.loads(ran.stdout.splitlines()[-1])
    # three thirds of each GPU, for a predictor each
    assert sorted(gpus for _, gpus in filled) == [[0, 0, 0], [1, 1, 1]]
    # a half for each model of one predictor
    ((_, gpus),) = halves
    assert sorted(map(gpus.count, set(gpus))) == [1, 2]
    assert {rows for rows, _ in (*filled, *halves)} == {5}
    assert free == free_again == 2
