import pytest

from leapray.cluster import nodes, session
from leapray.cluster.capacity import Capacity
from leapray.data.tasks import run_tasks
from leapray.errors import UserError
from leapray.recipe import Resources


def test_a_users_mistake_is_found_among_the_causes_of_an_exception() -> None:
    outer = RuntimeError("a worker failed")
    outer.worker_failures = {3: ValueError("other"), 4: UserError("x.nc: truncated")}  # type: ignore[attr-defined]
    assert str(session.find_user_error(outer)) == "x.nc: truncated"
    assert session.find_user_error(RuntimeError("disk on fire")) is None


@pytest.mark.ray
def test_what_no_node_has_is_refused_by_its_name(ray_cluster: None) -> None:
    with pytest.raises(UserError, match=r"^resources\.worker_resources: no node has 1 tpu, as given to ray start --resources$"):
        nodes.plan_trainings(Resources(workers=1, worker_resources={"tpu": 1}))


@pytest.mark.ray
def test_tasks_give_their_results_in_order(ray_cluster: None) -> None:
    seen: list[tuple[int, int]] = []
    assert list(run_tasks(lambda index: {"square": index**2}, 6, lambda *done: seen.append(done))) == [{"square": i**2} for i in range(6)]
    assert seen == [(done, 6) for done in range(1, 7)]


@pytest.mark.ray
def test_a_mistake_in_a_task_reaches_the_caller_as_its_sentence(ray_cluster: None) -> None:
    def mistaken(index: int) -> int:
        if index == 2:
            raise UserError("column 7 is missing")
        return index

    with pytest.raises(UserError, match=r"^column 7 is missing$"):
        list(run_tasks(mistaken, 4))


@pytest.mark.ray
def test_the_sessions_cluster_is_a_machine_with_more_logical_cpus_than_real_ones(
    ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes.os, "cpu_count", lambda: 2)
    assert nodes._capacity(Resources()) == Capacity("this machine", [(8, 0)], 2)
    with pytest.raises(UserError, match=r"5 workers x 2 CPU = 10 CPUs, and this machine has 8"):
        nodes.plan_trainings(Resources(workers=5, cpus_per_worker=2))


def test_data_nodes_are_asked_for_where_a_verb_begins_and_not_by_its_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    head = {"Alive": True, "Labels": {}, "Resources": {"CPU": 8.0}}
    gone = {"Alive": False, "Labels": {"role": "data"}, "Resources": {"CPU": 8.0}}
    monkeypatch.setattr(nodes.ray, "nodes", lambda: [head, gone])
    monkeypatch.setattr(nodes.ray, "is_initialized", lambda: True)
    labels = {"role": "data"}
    with pytest.raises(UserError, match="no node has the labels role=data"):
        nodes.plan_trainings(Resources(workers=1, data_nodes=labels), flat=True)
    assert nodes.plan_trainings(Resources(workers=1, data_nodes=labels)).at_once == 1
    with nodes.data_nodes(labels):
        assert nodes.ray.data.DataContext.get_current().execution_options.label_selector == labels
    monkeypatch.setattr(nodes, "autoscaled", lambda: True)
    nodes.require_data_nodes(labels)
