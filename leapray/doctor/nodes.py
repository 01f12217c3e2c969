"""A cluster asked about itself: its head, its nodes, and a small task on every one of them (Ray).

Joining is done in a process of its own, since Ray waits minutes for a head that does not answer, or ends the process that asks.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any, cast

from leapray.cluster import ray_compat
from leapray.doctor.facts import Cluster, Machine, Node, Place, Visit
from leapray.doctor.places import CONNECT_S, marked
from leapray.errors import UserError
from leapray.faults import shown

_JOIN_S, _TASK_S, _STRANGER_S = 60.0, 90.0, 30.0
_TOKEN = "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the cluster's"
_WITHIN = "on one of its nodes or by `ray job submit --working-dir . -- python jobs/run.py doctor`"


def look_at_cluster(address: str, places: Sequence[Place], visits: Sequence[Visit]) -> Cluster:
    """Join the cluster that RAY_ADDRESS names and ask every node about itself and the places; ``visits`` are the driver's own.

    Raises UserError for a cluster that cannot be joined.
    """
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    child = multiprocessing.get_context("spawn").Process(target=_joined, args=(theirs, address, places, visits), daemon=False)
    child.start()
    theirs.close()
    try:
        _received(ours, address, _JOIN_S, "be joined")
        return cast(Cluster, _received(ours, address, _TASK_S + _STRANGER_S, "tell of its nodes"))
    finally:
        child.join(CONNECT_S)
        if child.is_alive():
            child.kill()
            child.join()


def _received(connection: Connection, address: str, seconds: float, what: str) -> Any:
    """What the other process sends next; raises what it sends as an error."""
    try:
        if not connection.poll(seconds):
            raise UserError(f"RAY_ADDRESS {shown(address)}: could not {what} within {seconds:g} s; check that a Ray head listens there")
        sent = connection.recv()
    except EOFError as error:
        raise UserError(f"RAY_ADDRESS {shown(address)}: Ray gave up before it could {what}; see its logs below RAY_TMPDIR") from error
    if isinstance(sent, UserError):
        raise sent
    return sent


def _joined(connection: Connection, address: str, places: Sequence[Place], visits: Sequence[Visit]) -> None:
    # what Ray's native part writes as it fails
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    try:
        from leapray.cluster import session

        session.refuse_address(address)
        _knock(address)
        session.start()
        connection.send("joined")
        connection.send(survey(places, visits))
    except UserError as error:
        connection.send(error)
    except Exception as error:
        connection.send(
            UserError(f"RAY_ADDRESS {shown(address)}: {_told(error)}; check that a Ray head listens there, and run doctor {_WITHIN}")
        )


def _told(error: Exception) -> str:
    return shown(" ".join(str(error).split())[:300]).rstrip(". ") or type(error).__name__


def _knock(address: str) -> None:
    """Raises UserError where what listens at an address refuses this process's token, which Ray itself tells only after 20 s."""
    from ray.exceptions import AuthenticationError

    try:
        ray_compat.check_token(address, CONNECT_S)
    except AuthenticationError as error:
        raise UserError(f"RAY_ADDRESS {shown(address)}: the head refuses this process's token, or it has none; {_TOKEN}") from error


def survey(places: Sequence[Place], visits: Sequence[Visit]) -> Cluster:
    """The joined cluster; a node that does not answer within 90 s comes back with its silence."""
    import ray

    from leapray.cluster.nodes import autoscaled

    alive = [node for node in ray.nodes() if node["Alive"]]
    with marked(visits if len(alive) > 1 else ()) as marks:
        asked = [_task(node["NodeID"], places if len(alive) > 1 else (), marks) for node in alive]
        done, _ = ray.wait(asked, num_returns=len(asked), timeout=_TASK_S)
        nodes = tuple(_node(node, task, task in done) for node, task in zip(alive, asked, strict=True))
        for task in set(asked) - set(done):
            ray.cancel(task, force=True)
    gcs = ray.get_runtime_context().gcs_address
    return Cluster(gcs, nodes, float(ray.available_resources().get("CPU", 0)), _answers_strangers(gcs), autoscaled())


def _task(node: str, places: Sequence[Place], marks: dict[str, str]) -> Any:
    """A task on a node, which takes no CPU of it, so that a full one answers too."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    plain = [(place.key, place.url, place.writes) for place in places]

    def look() -> dict[str, Any]:
        # sent by value, and of nothing but plain values, so that it runs where leapray is not
        import platform
        from importlib.metadata import PackageNotFoundError, version

        try:
            from leapray.doctor.facts import Place
            from leapray.doctor.measure import machine
            from leapray.doctor.places import unseen, visit_all

            found = machine()
            return {
                "machine": found,
                "versions": found.versions,
                "visits": visit_all([Place(*fields) for fields in plain]),
                "unseen": unseen(marks),
            }
        except ImportError as error:
            versions: dict[str, str | None] = {"python": platform.python_version()}
            for name in ("torch", "ray", "pyarrow"):
                try:
                    versions[name] = version(name)
                except PackageNotFoundError:
                    versions[name] = None
            return {"versions": versions, "lacking": str(error)}

    placed = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
    return ray.remote(num_cpus=0, max_retries=0)(look).options(scheduling_strategy=placed).remote()


def _node(told: Mapping[str, Any], task: Any, done: bool) -> Node:
    import ray

    have, name = told["Resources"], told["NodeManagerHostname"]
    label = f"{name} ({told['NodeID'][:6]})"
    node = Node(
        label,
        have.get("CPU", 0),
        have.get("GPU", 0),
        have.get("memory", 0),
        have.get("object_store_memory", 0),
        resources=have,
        labels=told.get("Labels", {}),
    )
    if not done:
        return replace(node, silence=f"no task was answered within {_TASK_S:g} s")
    try:
        found: dict[str, Any] = ray.get(task, timeout=CONNECT_S)
    except Exception as error:
        return replace(node, silence=f"a task failed ({type(error).__name__}: {_told(error)})")
    machine: Machine | None = found.get("machine")
    return replace(
        node,
        versions=found["versions"],
        machine=machine,
        lacking=found.get("lacking"),
        visits=found.get("visits", ()),
        unseen=found.get("unseen", ()),
    )


def _answers_strangers(gcs_address: str) -> bool:
    """Whether a process without a token is answered: one of its own, since Ray reads the mode once."""
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    child = multiprocessing.get_context("spawn").Process(target=_stranger, args=(theirs, gcs_address), daemon=True)
    child.start()
    theirs.close()
    try:
        return bool(ours.poll(_STRANGER_S) and ours.recv())
    except EOFError:
        return False
    finally:
        child.kill()
        child.join()


def _stranger(connection: Connection, gcs_address: str) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    ray_compat.forget_token()
    connection.send(ray_compat.known_nodes(gcs_address, CONNECT_S) > 0)
