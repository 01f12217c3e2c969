import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from leapray import cluster
from leapray.data.tasks import run_tasks
from leapray.errors import UserError
from leapray.recipe import Resources


def test_a_users_mistake_is_found_among_the_causes_of_an_exception() -> None:
    outer = RuntimeError("a worker failed")
    outer.worker_failures = {3: ValueError("other"), 4: UserError("x.nc: truncated")}  # type: ignore[attr-defined]
    assert str(cluster.find_user_error(outer)) == "x.nc: truncated"
    assert cluster.find_user_error(RuntimeError("disk on fire")) is None


@pytest.mark.ray
def test_tasks_give_their_results_in_order(ray_cluster: None) -> None:
    seen: list[tuple[int, int]] = []
    assert list(run_tasks(lambda index: {"square": index**2}, 6, lambda *done: seen.append(done))) == [{"square": i**2} for i in range(6)]
    assert seen == [(done, 6) for done in range(1, 7)]


def mistaken(index: int) -> int:
    if index == 2:
        raise UserError("column 7 is missing")
    return index


@pytest.mark.ray
def test_a_mistake_in_a_task_reaches_the_caller_as_its_sentence(ray_cluster: None) -> None:
    with pytest.raises(UserError, match=r"^column 7 is missing$"):
        list(run_tasks(mistaken, 4))


def capacity(monkeypatch: pytest.MonkeyPatch, *nodes: tuple[int, int], cores: float | None = None, where: str = "the cluster") -> None:
    """Let there be nodes of so many logical CPUs and GPUs, and so many real CPUs."""
    held = sum(cpus for cpus, _ in nodes) if cores is None else cores
    monkeypatch.setattr(cluster, "_capacity", lambda: (where, list(nodes), held))


def at_once(resources: Resources, count: int = 5, **settings: int) -> int:
    return cluster.plan_trainings(resources, count, **settings).at_once


def test_a_laptop_trains_as_many_at_a_time_as_it_has_real_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    capacity(monkeypatch, (8, 0), cores=2, where="this machine")
    plan = cluster.plan_trainings(Resources(), 5)
    assert (plan.at_once, plan.threads) == (2, 1)
    assert plan.words == "5 trainings, 2 at a time: each takes 1 worker x 1 CPU, and this machine has 2 CPUs"
    assert at_once(Resources(cpus_per_worker=2)) == 1
    assert at_once(Resources(workers=4)) == 1
    assert at_once(Resources(), flat=True) == 1
    assert at_once(Resources(), 1) == 1


def test_a_lone_training_takes_all_real_cpus_for_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    capacity(monkeypatch, (16, 0))
    assert cluster.plan_trainings(Resources(), 1).threads == 16
    assert cluster.plan_trainings(Resources(), 4).threads == 4
    assert cluster.plan_trainings(Resources(workers=2), 4).threads == 2
    # what a worker reserves it has, whatever else stands idle
    assert cluster.plan_trainings(Resources(cpus_per_worker=7), 2).threads == 8
    assert cluster.plan_trainings(Resources(cpus_per_worker=7), 3).threads == 8


def test_a_cluster_trains_as_many_at_a_time_as_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    capacity(monkeypatch, (32, 4), (32, 4))
    assert at_once(Resources(workers=4, cpus_per_worker=4), 20) == 4
    assert at_once(Resources(workers=4, cpus_per_worker=4), 20, flat=True) == 3
    assert at_once(Resources(workers=4, use_gpu=True), 20) == 2
    assert at_once(Resources(workers=1, use_gpu=True), 20) == 8
    assert at_once(Resources(workers=1, use_gpu=True), 20, most=3) == 3
    assert at_once(Resources(workers=1, use_gpu=True), 2, most=3) == 2


@pytest.mark.parametrize(
    ("share", "together"), [(0.5, 4), (0.25, 8), (1 / 3, 6), (0.1, 20), (0.4, 4), (0.6, 2), (0.7, 2), (0.99, 2), (1, 2)]
)
def test_a_part_of_a_gpu_is_never_made_of_two(monkeypatch: pytest.MonkeyPatch, share: float, together: int) -> None:
    capacity(monkeypatch, (64, 2))
    assert at_once(Resources(workers=1, use_gpu=True, gpus_per_worker=share), 99) == together


def test_a_plan_says_what_a_gpu_is_shared_by(monkeypatch: pytest.MonkeyPatch) -> None:
    capacity(monkeypatch, (16, 1), where="this machine")
    words = cluster.plan_trainings(Resources(workers=1, use_gpu=True, gpus_per_worker=0.25), 6).words
    assert words == "6 trainings, 4 at a time: each takes 1 worker x 1 CPU and 0.25 GPU, and this machine has 16 CPUs and 1 GPUs"


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
def test_what_can_never_run_is_refused_with_the_arithmetic(
    monkeypatch: pytest.MonkeyPatch, resources: Resources, flat: bool, sentence: str
) -> None:
    capacity(monkeypatch, (4, 1), (4, 1))
    with pytest.raises(UserError, match=sentence):
        cluster.plan_trainings(resources, 3, flat=flat)


def test_a_worker_needs_its_cpus_and_its_gpu_on_one_node(monkeypatch: pytest.MonkeyPatch) -> None:
    capacity(monkeypatch, (64, 0), (2, 4), (2, 4))
    assert at_once(Resources(workers=1, use_gpu=True), 20) == 4
    assert at_once(Resources(workers=4, use_gpu=True), 20) == 1
    with pytest.raises(
        UserError, match=r"5 workers x 1 CPU and 1 GPU, and the 3 nodes of the cluster hold 4 such workers, each on one node"
    ):
        at_once(Resources(workers=5, use_gpu=True))
    capacity(monkeypatch, (8, 0), (8, 0))
    assert at_once(Resources(cpus_per_worker=3), 20) == 4
    assert at_once(Resources(cpus_per_worker=3), 20, flat=True) == 4


def test_a_machine_without_gpus_refuses_a_part_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    capacity(monkeypatch, (8, 0), where="this machine")
    with pytest.raises(UserError, match=r"1 worker x 0\.5 GPU = 0\.5 GPUs, and this machine has 0"):
        cluster.plan_trainings(Resources(workers=1, use_gpu=True, gpus_per_worker=0.5))


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

    with pytest.MonkeyPatch.context() as patch:
        capacity(patch, *nodes, cores=real)
        if not held(1):
            with pytest.raises(UserError, match=r"training wants .*, and the .*cluster h"):
                cluster.plan_trainings(resources, count, flat=flat, most=most)
            return
        plan = cluster.plan_trainings(resources, count, flat=flat, most=most)
    cpus_of_one = processes * cpus_per_worker + flat
    assert 1 <= plan.at_once <= min(count, most or count)
    assert held(plan.at_once)
    assert plan.at_once == 1 or plan.at_once * cpus_of_one <= real
    more = plan.at_once + 1
    assert more > min(count, most or count) or not held(more) or more * cpus_of_one > real
    assert plan.threads >= cpus_per_worker


def test_this_machine_is_known_before_ray_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(cluster.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(cluster.torch.cuda, "device_count", lambda: 1)
    assert cluster._capacity() == ("this machine", [(8, 1)], 2)
    monkeypatch.setattr(cluster.os, "cpu_count", lambda: 48)
    assert cluster._capacity() == ("this machine", [(48, 1)], 48)


@pytest.mark.ray
def test_the_sessions_cluster_is_a_machine_with_more_logical_cpus_than_real_ones(
    ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster.os, "cpu_count", lambda: 2)
    assert cluster._capacity() == ("this machine", [(8, 0)], 2)
    with pytest.raises(UserError, match=r"5 workers x 2 CPU = 10 CPUs, and this machine has 8"):
        cluster.plan_trainings(Resources(workers=5, cpus_per_worker=2))
