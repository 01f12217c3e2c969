import os
import subprocess
import sys

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from leapray.cluster import capacity
from leapray.cluster.capacity import Capacity, Plan
from leapray.errors import UserError
from leapray.recipe import Resources


def having(*nodes: tuple[int, int], cores: float | None = None, where: str = "the cluster") -> Capacity:
    """Nodes of so many logical CPUs and GPUs, and so many real CPUs."""
    return Capacity(where, nodes, sum(cpus for cpus, _ in nodes) if cores is None else cores)


def planned(held: Capacity, resources: Resources, count: int = 5, **settings: int) -> Plan:
    return capacity.plan_trainings(held, resources, count, **settings)


def at_once(held: Capacity, resources: Resources, count: int = 5, **settings: int) -> int:
    return planned(held, resources, count, **settings).at_once


LAPTOP = having((8, 0), cores=2, where="this machine")


def test_a_laptop_trains_as_many_at_a_time_as_it_has_real_cpus() -> None:
    plan = planned(LAPTOP, Resources(), 5)
    assert (plan.at_once, plan.threads) == (2, 1)
    assert plan.words == "5 trainings, 2 at a time: each takes 1 worker x 1 CPU, and this machine has 2 CPUs"
    assert at_once(LAPTOP, Resources(cpus_per_worker=2)) == 1
    assert at_once(LAPTOP, Resources(workers=4)) == 1
    assert at_once(LAPTOP, Resources(), flat=True) == 1
    assert at_once(LAPTOP, Resources(), 1) == 1


def test_a_lone_training_takes_all_real_cpus_for_its_threads() -> None:
    held = having((16, 0))
    assert planned(held, Resources(), 1).threads == 16
    assert planned(held, Resources(), 4).threads == 4
    assert planned(held, Resources(workers=2), 4).threads == 2
    # what a worker reserves it has, whatever else stands idle
    assert planned(held, Resources(cpus_per_worker=7), 2).threads == 8
    assert planned(held, Resources(cpus_per_worker=7), 3).threads == 8


def test_a_cluster_trains_as_many_at_a_time_as_it_holds() -> None:
    held = having((32, 4), (32, 4))
    assert at_once(held, Resources(workers=4, cpus_per_worker=4), 20) == 4
    assert at_once(held, Resources(workers=4, cpus_per_worker=4), 20, flat=True) == 3
    assert at_once(held, Resources(workers=4, use_gpu=True), 20) == 2
    assert at_once(held, Resources(workers=1, use_gpu=True), 20) == 8
    assert at_once(held, Resources(workers=1, use_gpu=True), 20, most=3) == 3
    assert at_once(held, Resources(workers=1, use_gpu=True), 2, most=3) == 2


@pytest.mark.parametrize(
    ("share", "together"), [(0.5, 4), (0.25, 8), (1 / 3, 6), (0.1, 20), (0.4, 4), (0.6, 2), (0.7, 2), (0.99, 2), (1, 2)]
)
def test_a_part_of_a_gpu_is_never_made_of_two(share: float, together: int) -> None:
    assert at_once(having((64, 2)), Resources(workers=1, use_gpu=True, gpus_per_worker=share), 99) == together


def test_a_plan_says_what_a_gpu_is_shared_by() -> None:
    plan = planned(having((16, 1), where="this machine"), Resources(workers=1, use_gpu=True, gpus_per_worker=0.25), 6)
    assert plan.words == "6 trainings, 4 at a time: each takes 1 worker x 1 CPU and 0.25 GPU, and this machine has 16 CPUs and 1 GPUs"


@pytest.mark.parametrize(
    ("resources", "flat", "sentence"),
    [
        (Resources(workers=9), False, r"training wants 9 workers x 1 CPU = 9 CPUs, and the cluster has 8"),
        (Resources(workers=4, cpus_per_worker=3), False, r"4 workers x 3 CPU = 12 CPUs, and the cluster has 8"),
        (Resources(cpus_per_worker=5), False, r"1 worker x 5 CPU, and the 2 nodes of the cluster hold 0 such workers, each on one node"),
        (Resources(workers=4, cpus_per_worker=2, use_gpu=True), False, r"4 workers x 1 GPU = 4 GPUs, and the cluster has 2"),
        (Resources(cpus_per_worker=9), False, r"1 worker x 9 CPU = 9 CPUs, and the cluster has 8"),
        (Resources(workers=8), True, r"8 workers x 1 CPU \+ 1 CPU for the tasks that scale data = 9 CPUs, and the cluster has 8"),
        (Resources(workers=4, use_gpu=True), False, r"4 workers x 1 GPU = 4 GPUs, and the cluster has 2"),
        (Resources(workers=3, use_gpu=True), True, r"3 workers x 1 GPU = 3 GPUs, and the cluster has 2"),
    ],
)
def test_what_can_never_run_is_refused_with_the_arithmetic(resources: Resources, flat: bool, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        planned(having((4, 1), (4, 1)), resources, 3, flat=flat)


def test_a_worker_needs_its_cpus_and_its_gpu_on_one_node() -> None:
    held = having((64, 0), (2, 4), (2, 4))
    assert at_once(held, Resources(workers=1, use_gpu=True), 20) == 4
    assert at_once(held, Resources(workers=4, use_gpu=True), 20) == 1
    with pytest.raises(
        UserError, match=r"5 workers x 1 CPU and 1 GPU, and the 3 nodes of the cluster hold 4 such workers, each on one node"
    ):
        at_once(held, Resources(workers=5, use_gpu=True))
    two = having((8, 0), (8, 0))
    assert at_once(two, Resources(cpus_per_worker=3), 20) == 4
    assert at_once(two, Resources(cpus_per_worker=3), 20, flat=True) == 4


def test_a_machine_without_gpus_refuses_a_part_of_one() -> None:
    with pytest.raises(UserError, match=r"1 worker x 0\.5 GPU = 0\.5 GPUs, and this machine has 0"):
        planned(LAPTOP, Resources(workers=1, use_gpu=True, gpus_per_worker=0.5))


@given(
    workers=st.integers(0, 6),
    cpus_per_worker=st.integers(1, 5),
    use_gpu=st.booleans(),
    share=st.one_of(st.just(1.0), st.floats(0.05, 1.0)),
    flat=st.booleans(),
    count=st.integers(1, 20),
    most=st.one_of(st.none(), st.integers(1, 20)),
    nodes=st.lists(st.tuples(st.integers(1, 24), st.integers(0, 4)), min_size=1, max_size=3),
    oversold=st.integers(1, 4),
)
def test_never_plans_more_than_fits(
    workers: int,
    cpus_per_worker: int,
    use_gpu: bool,
    share: float,
    flat: bool,
    count: int,
    most: int | None,
    nodes: list[tuple[int, int]],
    oversold: int,
) -> None:
    assume(share == 1 or workers <= 1)
    resources = Resources(workers=workers, cpus_per_worker=cpus_per_worker, use_gpu=use_gpu, gpus_per_worker=share)
    processes = max(workers, 1)
    real = sum(cpus for cpus, _ in nodes) / oversold

    def held(number: int) -> bool:
        """Whether so many trainings fit: each worker on the first node that has what it takes, tasks in what is left."""
        cpus_left = [cpus for cpus, _ in nodes]
        gpus_left = [[1.0] * gpus for _, gpus in nodes]
        for _ in range(number * processes):
            places = (
                (node, gpu)
                for node, cpus in enumerate(cpus_left)
                for gpu, left in enumerate(gpus_left[node] if use_gpu else [1.0])
                if cpus >= cpus_per_worker and (not use_gpu or left >= share - 1e-6)
            )
            if (place := next(places, None)) is None:
                return False
            cpus_left[place[0]] -= cpus_per_worker
            if use_gpu:
                gpus_left[place[0]][place[1]] -= share
        return sum(cpus_left) >= number * flat

    there = having(*nodes, cores=real)
    if not held(1):
        with pytest.raises(UserError, match=r"training wants .*, and the .*cluster h"):
            capacity.plan_trainings(there, resources, count, flat=flat, most=most)
        return
    plan = capacity.plan_trainings(there, resources, count, flat=flat, most=most)
    cpus_of_one = processes * cpus_per_worker + flat
    assert 1 <= plan.at_once <= min(count, most or count)
    assert held(plan.at_once)
    assert plan.at_once == 1 or plan.at_once * cpus_of_one <= real
    more = plan.at_once + 1
    assert more > min(count, most or count) or not held(more) or more * cpus_of_one > real
    assert plan.threads >= cpus_per_worker


def test_this_machine_is_known_before_ray_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(capacity, "_gpus", lambda: 1)
    assert capacity.this_machine(True) == Capacity("this machine", [(8, 1)], 2)
    assert capacity.this_machine(False) == Capacity("this machine", [(8, 0)], 2)
    monkeypatch.setattr(capacity.os, "cpu_count", lambda: 48)
    assert capacity.this_machine(True) == Capacity("this machine", [(48, 1)], 48)


@pytest.mark.parametrize("verb", ["train", "finetune", "sweep"])
@pytest.mark.parametrize(
    ("overrides", "arithmetic"),
    [
        (["resources.workers=1000", "training.batch_size=8000"], "1000 workers x 1 CPU = 1000 CPUs, and this machine has"),
        (["resources.use_gpu=true"], "1 worker x 1 GPU = 1 GPU, and this machine has 0"),
    ],
)
def test_verbs_refuse_what_can_never_run_before_they_import_torch_or_ray(verb: str, overrides: list[str], arithmetic: str) -> None:
    recipe = "jobs/recipes/sweep_low_res.yaml" if verb == "sweep" else "jobs/recipes/demo.yaml"
    command = ["leapray", verb, recipe, *(word for override in overrides for word in ("--set", override))]
    script = f"""
import sys
from leapray import cli
from leapray.cluster import capacity
capacity._GPU_DEVICES = ()
sys.argv = {command}
try:
    cli.main()
except SystemExit as ended:
    print(ended.code, *(name for name in ("torch", "ray", "matplotlib") if name in sys.modules))
"""
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert ran.stdout.strip() == "2"
    assert arithmetic in " ".join(ran.stderr.split())


def test_a_cluster_that_grows_holds_what_it_has_no_nodes_for_yet() -> None:
    empty = Capacity("the cluster", [], 0)
    with pytest.raises(UserError, match="the cluster has 0"):
        planned(empty, Resources(workers=8, use_gpu=True))
    growing = Capacity("the cluster", [], 0, grows=True)
    plan = planned(growing, Resources(workers=8, use_gpu=True, cpus_per_worker=2), 3)
    assert (plan.at_once, plan.threads) == (3, 2)
    assert plan.words.endswith("each takes 8 workers x 2 CPU and 1 GPU, and the cluster adds nodes as they are needed")
    assert [planned(growing, Resources(), 20, **most).at_once for most in ({}, {"most": 4})] == [8, 4]


def test_an_elastic_training_needs_its_fewest_workers() -> None:
    elastic = Resources(workers=8, min_workers=2)
    assert at_once(having((4, 0)), elastic, 1) == 1
    with pytest.raises(UserError, match=r"2 workers x 1 CPU = 2 CPUs, and the cluster has 1"):
        planned(having((1, 0)), elastic)
