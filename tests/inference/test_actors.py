"""How a prediction is laid out over a cluster, without one."""

from collections.abc import Callable

import pytest

from leapray.cluster import nodes
from leapray.errors import UserError
from leapray.inference.actors import plan_actors

Cluster = Callable[..., None]


@pytest.fixture
def has(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """A cluster with GPUs, and with CPUs by node."""

    def of(*cpus: float, gpus: int = 0, grows: bool = False) -> None:
        monkeypatch.setattr(nodes, "node_cpus", lambda: list(cpus))
        monkeypatch.setattr(nodes, "parallelism", lambda: int(sum(cpus)))
        monkeypatch.setattr(nodes, "gpus", lambda: float(gpus))
        monkeypatch.setattr(nodes, "autoscaled", lambda: grows)

    return of


@pytest.mark.parametrize(
    ("models", "share", "gpus", "predictors", "of_each"),
    [
        (4, None, 1, 1, 0.25),
        (4, None, 3, 3, 0.25),
        (3, None, 2, 2, 0.3333),
        (7, None, 1, 1, 0.1428),
        (1, None, 2, 2, 1.0),
        (1, 0.25, 2, 8, 0.25),
        (3, 1.0, 7, 2, 1.0),
        (3, 0.5, 2, 1, 0.5),
        (3, 0.1, 1, 3, 0.1),
    ],
)
def test_gpus_are_shared_among_the_actors_of_models(
    has: Cluster, models: int, share: float | None, gpus: int, predictors: int, of_each: float
) -> None:
    has(64, gpus=gpus)
    actors = plan_actors(models, 100, use_gpu=True, share=share)
    assert (actors.predictors, actors.gpus) == (predictors, of_each)
    assert actors.apart == (models > 1)
    # Ray puts an actor on one GPU, and never two beyond it
    assert predictors * models <= gpus * int(1 / of_each)


def test_no_more_predictors_than_files(has: Cluster) -> None:
    has(64, gpus=8)
    assert plan_actors(2, 3, use_gpu=True).predictors == 3


def test_no_more_predictors_than_cpus_which_each_of_them_takes(has: Cluster) -> None:
    has(2, gpus=8)
    assert plan_actors(2, 100, use_gpu=True).predictors == 2


@pytest.mark.parametrize("use_gpu", [True, False])
def test_a_cluster_without_cpus_is_refused(has: Cluster, use_gpu: bool) -> None:
    has(0, gpus=1)
    with pytest.raises(UserError, match="no node of the cluster has one"):
        plan_actors(2, 10, use_gpu=use_gpu, apart=True)


def test_models_together_on_a_gpu_are_one_actor(has: Cluster) -> None:
    has(64, gpus=2)
    actors = plan_actors(5, 100, use_gpu=True, apart=False)
    assert (actors.predictors, actors.gpus, actors.apart) == (2, 1.0, False)


@pytest.mark.parametrize(
    ("models", "share", "words"),
    [
        (3, 1.0, "3 models, each an actor with 1 of a GPU, and the cluster's 2 GPUs hold 2; give --gpu-share 0.5, or --together"),
        (7, 0.5, "7 models, each an actor with 0.5 of a GPU, and the cluster's 2 GPUs hold 4; give --gpu-share 0.25, or --together"),
    ],
)
def test_models_that_the_gpus_cannot_hold_are_refused_with_what_helps(has: Cluster, models: int, share: float, words: str) -> None:
    has(8, gpus=2)
    with pytest.raises(UserError, match=f"^{words}$"):
        plan_actors(models, 10, use_gpu=True, share=share)


@pytest.mark.parametrize("cpus", [(1,), (2,), (8,), (1, 1, 1), (2, 3), (0, 16, 16)])
@pytest.mark.parametrize("models", [1, 2, 3, 10])
@pytest.mark.parametrize("pieces", [1, 4, 100])
def test_nodes_have_cpus_for_all_actors_at_once(has: Cluster, cpus: tuple[float, ...], models: int, pieces: int) -> None:
    has(*cpus)
    actors = plan_actors(models, pieces, apart=True)
    assert 1 <= actors.predictors <= pieces
    assert 0 < actors.cpus <= 1
    assert sum(int(have / actors.cpus + 1e-9) for have in cpus) >= actors.predictors * (1 + models)
    assert actors.threads * actors.predictors * models <= max(sum(cpus), actors.predictors * models)


def test_models_are_together_on_cpus_unless_asked_for(has: Cluster) -> None:
    has(4)
    actors = plan_actors(3, 2)
    assert (actors.predictors, actors.apart, actors.cpus, actors.threads) == (2, False, 1, 2)


def test_a_cluster_that_grows_has_room_for_every_file(has: Cluster) -> None:
    has(1, grows=True)
    assert plan_actors(2, 40, use_gpu=True).predictors == 40
    assert plan_actors(2, 40, apart=True).cpus == 1
