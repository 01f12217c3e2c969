"""What ``leapray doctor`` finds out about a cluster: it joins it and runs a small task on every node (Ray)."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from leapray import storage
from leapray.cluster import nodes, ray_compat, session
from leapray.cluster.capacity import Plan
from leapray.console import scaled
from leapray.data.findings import Finding, Verdict
from leapray.doctor import judge_capacity, versions
from leapray.doctor_places import Visit, marked, note, ok, wrong
from leapray.faults import shown
from leapray.recipe import Recipe

_TASK_S, _GET_S, _STATUS_S = 90.0, 5.0, 30.0
_LEAST_STORE = 4 * 128 * 2**20
"""Four of Ray Data's largest blocks."""


def judge_cluster(recipe: Recipe | None, visits: Sequence[Visit]) -> Iterator[Finding]:
    """Join the cluster of ``RAY_ADDRESS`` and look at every node. ``visits`` are the driver's own; usable places are tried on all nodes.

    Raises UserError for a cluster that cannot be joined.
    """
    with session.connected():
        alive, address = [node for node in ray.nodes() if node["Alive"]], ray.get_runtime_context().gcs_address
        cpus, gpus = (sum(node["Resources"].get(name, 0) for node in alive) for name in ("CPU", "GPU"))
        grows, free = nodes.autoscaled(), ray.available_resources().get("CPU", 0)
        more = ", and it adds nodes as they are needed" if grows else ""
        yield ok(f"the cluster at {address}: {len(alive)} node{'s' * (len(alive) != 1)}, {cpus:g} CPUs, {gpus:g} GPUs{more}")
        if free < cpus and not grows:
            yield note(f"the cluster: {free:g} of its {cpus:g} CPUs are free, and what needs more waits until others end")
        if _is_open(address):
            yield note(
                "the cluster answers clients without a token, and a client can run code; start Ray with RAY_AUTH_MODE=token everywhere"
            )
        # the only node is the driver's own
        tried = [seen for seen in visits if seen.trouble is None] if len(alive) > 1 else []
        with marked(tried) as marks:
            tasks = [_task(node["NodeID"], recipe, tried, marks) for node in alive]
            done, late = ray.wait(tasks, num_returns=len(tasks), timeout=_TASK_S)
            for node, task in zip(alive, tasks, strict=True):
                name = f"node {node['NodeManagerHostname']} ({node['NodeID'][:6]})"
                yield from judge_node(name, node["Resources"], _found(task, task in done), versions())
            for task in late:
                ray.cancel(task, force=True)
        if recipe:
            yield from judge_capacity(recipe, lambda: _plan(recipe))


def _plan(recipe: Recipe) -> Plan:
    nodes.require_data_nodes(recipe.resources.data_nodes)
    return nodes.plan_trainings(recipe.resources, flat=recipe.data.stream_from == "flat")


def _task(node: str, recipe: Recipe | None, visits: Sequence[Visit], marks: Mapping[str, str]) -> Any:
    """A task on a node. It takes no CPU, so that a full node answers too."""
    values = recipe.to_dict() if recipe else None
    places = [(seen.place.key, storage.absolute(seen.place.url), seen.place.writes) for seen in visits]

    def look() -> dict[str, Any]:
        # sent by value and returning plain values, so that it runs where leapray is missing or of another version
        import platform

        try:
            from leapray.data.findings import Verdict
            from leapray.doctor import check_machine, gpus, versions
            from leapray.doctor_places import Place, judge_visits, visit_all
            from leapray.recipe import parse_recipe

            found = list(check_machine(parse_recipe(values) if values else None))
            # what is worth a note at the driver is told once
            found += [one for one in judge_visits(visit_all([Place(*place) for place in places])) if one.verdict is Verdict.WRONG]
            unseen = [key for key, path in marks.items() if not os.path.exists(path)]
            findings = [(finding.verdict.value, finding.text) for finding in found]
            return {"versions": versions(), "gpus": len(gpus()), "findings": findings, "unseen": unseen}
        except (ImportError, AttributeError, TypeError) as error:
            return {"versions": {"python": platform.python_version()}, "trouble": f"leapray cannot be used there ({error})"}

    placed = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
    return ray.remote(num_cpus=0, max_retries=0)(look).options(scheduling_strategy=placed).remote()


def _found(task: Any, done: bool) -> Mapping[str, Any]:
    if not done:
        return {"trouble": f"no task was answered within {_TASK_S:g} s"}
    try:
        found: dict[str, Any] = ray.get(task, timeout=_GET_S)
    except Exception as error:
        return {"trouble": f"a task failed ({type(error).__name__}: {shown(' '.join(str(error).split())[:300])})"}
    return found


def judge_node(name: str, have: Mapping[str, float], found: Mapping[str, Any], ours: Mapping[str, str | None]) -> Iterator[Finding]:
    """One node: the resources that Ray tells, and what a task ``found`` there; its versions must be ``ours``."""
    store, gpus = have.get("object_store_memory", 0), have.get("GPU", 0)
    told = f"{scaled(have.get('memory', 0))} memory, {scaled(store)} object store"
    yield ok(f"{name}: {have.get('CPU', 0):g} CPUs, {gpus:g} GPUs, {told}")
    if store < _LEAST_STORE:
        yield wrong(f"{name}: its object store is too small; give {_LEAST_STORE} or more to `ray start --object-store-memory`")
    theirs = found.get("versions", {})
    if differ := [key for key in theirs if theirs[key] != ours.get(key)]:
        said = ", ".join(f"{key} {theirs[key] or 'missing'} (here {ours.get(key)})" for key in differ)
        bad = {"leapray", "ray"} & set(differ) or not all(theirs[key] for key in differ)
        yield (wrong if bad else note)(f"{name}: versions differ: {said}; install the same on all nodes")
    if "trouble" in found:
        yield wrong(f"{name}: {found['trouble']}; look at its raylet's log, or give the verb to `ray job submit --working-dir .`")
        return
    yield from (Finding(Verdict(verdict), f"{name}: {text}") for verdict, text in found["findings"] if verdict != Verdict.OK.value)
    for key in found["unseen"]:
        yield wrong(
            f"{name}: {key} is a local path on another disk than the driver's; set {key} to s3:// or to a disk that all nodes share"
        )
    if gpus != found["gpus"]:
        yield note(f"{name}: Ray counts {gpus:g} GPUs, and the driver {found['gpus']}; start Ray there without --num-gpus")


def _is_open(address: str) -> bool:
    """Whether a cluster answers a client without a token: ``ray status`` in a process of its own, since Ray reads the token once."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "status", "--address", address]
    try:
        said = subprocess.run(command, env=ray_compat.without_token(), capture_output=True, timeout=_STATUS_S, check=False)
    except (OSError, subprocess.SubprocessError):
        return False
    return said.returncode == 0
