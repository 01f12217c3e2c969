import pytest

from leapray import cluster
from leapray.data.tasks import run_tasks
from leapray.errors import UserError


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


@pytest.mark.ray
def test_what_can_never_run_is_refused_with_the_arithmetic(ray_cluster: None) -> None:
    cluster.check_resources(workers=7, cpus_per_worker=1, use_gpu=False)
    with pytest.raises(UserError, match=r"4 workers x 2 CPU \+ 1 CPU for reading data = 9 CPUs, and the cluster has 8"):
        cluster.check_resources(workers=4, cpus_per_worker=2, use_gpu=False)
    with pytest.raises(UserError, match=r"2 GPU\(s\), one per worker, and the cluster has 0"):
        cluster.check_resources(workers=2, cpus_per_worker=1, use_gpu=True)
