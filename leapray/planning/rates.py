"""The rates that a plan is made from, each with where it comes from: measured here, given by the user, or assumed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Origin = Literal["measured", "given", "assumed"]


@dataclass(frozen=True)
class Rate:
    """A number, its unit, and where it comes from."""

    value: float
    unit: str
    origin: Origin
    source: str


def assumed(value: float, unit: str, source: str) -> Rate:
    return Rate(value, unit, "assumed", source)


def given(value: float, unit: str, option: str) -> Rate:
    return Rate(value, unit, "given", option)


GPU_TFLOPS = {
    "bf16": assumed(395, "TFLOP/s", "half of the 790 TFLOP/s that an H200 does of bf16 matrix products"),
    "fp16": assumed(395, "TFLOP/s", "as bf16: half of what an H200 does of matrix products"),
    "float32": assumed(33, "TFLOP/s", "half of an H200's data sheet, 67 TFLOP/s of float32"),
}
"""What a GPU attains in training, by precision."""
CPU_TFLOPS = assumed(0.049, "TFLOP/s", "a core of bench train-step, float32")
LAUNCH_S = assumed(5e-6, "s", "from one kernel's start to the next that waits for it")
"""A recurrent layer takes its levels one after another, so that its passes are never shorter than this for each of them."""
READ = {
    "shards": assumed(160_000, "rows/s", "a core of bench ingest, shards in the first epoch"),
    "flat": assumed(31_600, "rows/s", "a core of bench ingest, flat parquet"),
}
CONVERT = assumed(26_400, "rows/s", "a core of bench convert, CDF-5 (15 800 of HDF5)")
PREPARE = {
    "shards": assumed(17_000, "rows/s", "a core: statistics and shuffle (docs/planning.md)"),
    "flat": assumed(70_000, "rows/s", "a core: statistics alone (docs/planning.md)"),
}
GPU_LINK = assumed(360e9, "bytes/s", "0.8 of the 450 GB/s each way of an H200's NVLink")
CPU_LINK = assumed(0.5e9, "bytes/s", "gloo between processes of one machine (docs/planning.md)")
NETWORK = assumed(12.5e9, "bytes/s", "a card of 100 Gbit/s")
STORAGE = assumed(12.5e9, "bytes/s", "as much as one card of 100 Gbit/s takes")
CPUS_PER_GPU = 12
"""Cores beside each GPU of a node, assumed: 96 for eight, as in machines that are let with H200s."""
GPUS_PER_NODE = 8
