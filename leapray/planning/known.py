"""Every rate of the model as far as it is known: given, else measured, else assumed."""

from __future__ import annotations

from collections.abc import Mapping

from leapray.errors import UserError
from leapray.planning import rates
from leapray.planning.model import Cluster
from leapray.planning.network import Cost
from leapray.planning.rates import Rate, assumed, given
from leapray.planning.request import Request
from leapray.recipe import Recipe

_GIGABIT = 1e9 / 8


def find_rates(recipe: Recipe, request: Request, cluster: Cluster, cost: Cost, measured: Mapping[str, Rate]) -> dict[str, Rate]:
    """The rates by name. Raises UserError for a network that cannot be counted, where its rate is neither given nor measured."""
    found: dict[str, Rate] = {}
    form = recipe.data.stream_from
    if request.rate is not None:
        found["train"] = given(request.rate, "rows/s", "--rate")
    elif "train" in measured:
        found["train"] = measured["train"]
    else:
        found |= _by_arithmetic(recipe, request, cluster, cost)
    if cluster.gpu and "train" not in measured:
        found["launch"] = rates.LAUNCH_S
    found |= {f"read {name}": rate for name, rate in rates.READ.items()}
    if request.read_rate is not None:
        found[f"read {form}"] = given(request.read_rate, "rows/s", "--read-rate")
    elif "read" in measured:
        found[f"read {form}"] = measured["read"]
    for name, gigabits, default in (
        ("link", request.link_gbps, rates.GPU_LINK if cluster.gpu else rates.CPU_LINK),
        ("network", request.network_gbps, rates.NETWORK),
        ("storage", request.storage_gbps, rates.STORAGE),
    ):
        found[name] = default if gigabits is None else given(gigabits * _GIGABIT, "bytes/s", f"--{name}-gbps {gigabits:g}")
    return found | {"convert": rates.CONVERT, "prepare": rates.PREPARE[form]}


def _by_arithmetic(recipe: Recipe, request: Request, cluster: Cluster, cost: Cost) -> dict[str, Rate]:
    """The rate of a worker from the operations of its network and those that the device does."""
    if not cost.flop:
        raise UserError(
            f"network {recipe.network.name}: has no linear or recurrent layer whose operations can be counted; give --rate or --measure"
        )
    if not cluster.gpu:
        device, times = rates.CPU_TFLOPS, max(cluster.cpus, 1.0)
    elif request.gpu_tflops is not None:
        device, times = given(request.gpu_tflops, "TFLOP/s", "--gpu-tflops"), 1.0
    else:
        device, times = rates.GPU_TFLOPS[recipe.training.precision], 1.0
    told = f"{cost.flop / 1e9:.3g} GFLOP a row, arithmetic of " + ("a GPU" if cluster.gpu else f"{times:.3g} CPUs")
    return {"arithmetic": device, "train": assumed(device.value * 1e12 * times / cost.flop, "rows/s", told)}
