"""What a plan says: rows, bytes, the parts of a step, and what holds it back, by hand and for all machines."""

import json
import math
import os
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from leapray.cli import app
from leapray.climsim.calendar import Month, month_range
from leapray.climsim.schema import KINDS
from leapray.data import flat
from leapray.data.flat import read_piece
from leapray.data.parts import cut
from leapray.data.prepare import prepare
from leapray.errors import UserError
from leapray.planning import measure
from leapray.planning.model import COMPUTE, DATA, GRADIENTS, NETWORK, PARTS, STORAGE, Cluster, Speeds, Step, Work, exchanged_bytes, step_of
from leapray.planning.network import cost_of
from leapray.planning.plan import Plan, make_plan
from leapray.planning.request import Request, gpu_cluster
from leapray.planning.rows import FLAT_BYTES, RAW_BYTES, count, epoch_of, find_rows, shard_bytes
from leapray.planning.show import in_words
from leapray.recipe import Data, Recipe, Source, parse_recipe
from tests.columns import INPUTS, TARGETS
from tests.official_layout import write_pair
from tests.samples import recipe_values, sample_recipe, write_flat

RECIPES = Path(__file__).parent.parent / "jobs" / "recipes"
WORK = Work(batch_rows=4096, parameters=18_525_030, row_bytes=3704.0)
NODE = Cluster(workers=8, gpu=True, workers_per_node=8, cpus_per_node=96)
SPEEDS = Speeds(train=73e3, read=160e3, link=360e9, network=12.5e9, storage=12.5e9)

positive = st.floats(1e-2, 1e12)
speeds = st.builds(Speeds, positive, positive, positive, positive, positive)
works = st.builds(Work, st.integers(1, 10**6), st.integers(1, 10**9), st.floats(1, 1e5), st.integers(1, 8), st.floats(0, 1))
clusters = st.builds(
    lambda workers, gpu, per_node, share, remote: Cluster(workers, gpu, per_node, share * min(workers, per_node), remote),
    st.integers(1, 512),
    st.booleans(),
    st.integers(1, 16),
    st.floats(1.5, 64),
    st.booleans(),
)


def recipe(**sections: Any) -> Recipe:
    """A small recipe whose data is nowhere."""
    values: dict[str, Any] = {
        "name": "planned",
        "data": {
            "prepared": "nowhere/prepared",
            "sources": {
                "low_res": {
                    "kind": "low-res",
                    "path": "nowhere/flat",
                    "train": {"start": "0001-02", "stop": "0001-04"},
                    "validation": {"start": "0001-04", "stop": "0001-05"},
                }
            },
        },
        "network": {"name": "mlp", "options": {"hidden": [16]}},
        "training": {"run": "nowhere/run", "epochs": 3, "batch_size": 4096},
        "resources": {"workers": 8, "use_gpu": True},
    }
    for name, section in sections.items():
        values[name] = values[name] | section
    return parse_recipe(values)


def plan(gpus: int = 8, *, sections: dict[str, Any] | None = None, **options: Any) -> Plan:
    resources = {"resources": {"workers": gpus or 1, "use_gpu": gpus > 0}}
    return make_plan(recipe(**resources, **(sections or {})), Request(gpus=gpus, **options))


# rows


@pytest.mark.parametrize(("kind", "stride", "phase"), [("low-res", 1, 0), ("low-res", 7, 3), ("aqua-planet", 6, 0), ("high-res", 7, 6)])
def test_rows_are_the_steps_of_the_months_that_the_stride_takes_times_the_columns(kind: str, stride: int, phase: int) -> None:
    months = {"start": "0001-11", "stop": "0002-03"}
    source = Source.model_validate({"kind": kind, "path": "x", "train": months, "stride": stride, "phase": phase})
    # 334 days up to November without February's 0001-01; counted day by day
    days = [month.steps // 72 for month in month_range(Month.parse("0001-11"), Month.parse("0002-03"))]
    assert days == [30, 31, 31, 28]
    first = 72 * (28 + 31 + 30 + 31 + 30 + 31 + 31 + 30 + 31)
    steps = sum(1 for step in range(first, first + 72 * sum(days)) if step % stride == phase)
    assert count(source, "train", seed=0) == steps * KINDS[kind].columns


def test_the_competitions_rows_and_the_whole_archives_bytes() -> None:
    training = {"start": "0001-02", "stop": "0008-02"}
    seventh = Source.model_validate({"kind": "low-res", "path": "x", "train": training, "stride": 7})
    assert count(seventh, "train", seed=0) == 10_091_520
    whole = {"path": "x", "train": {"start": "0001-02", "stop": "0009-02"}}
    low, high = (count(Source.model_validate({"kind": kind, **whole}), "train", seed=0) for kind in ("low-res", "high-res"))
    assert (low, high) == (80_732_160, 4_541_184_000)
    # an input file of 1.9 MB and an output file of 1.1 MB
    assert low * RAW_BYTES / 210_240 == pytest.approx(1.9e6 + 1.1e6, rel=0.02)
    assert low * RAW_BYTES / 1e12 == pytest.approx(0.64, rel=0.01)
    assert high * RAW_BYTES / 1e12 == pytest.approx(35.8, rel=0.01)


def test_a_fraction_takes_about_that_share_of_the_snapshots_whole() -> None:
    months = {"start": "0001-02", "stop": "0002-02"}
    every, some = (
        count(Source.model_validate({"kind": "high-res", "path": "x", "train": months, "fraction": share}), "train", seed=0)
        for share in (1, "1/15")
    )
    assert some % 21600 == 0
    assert some / every == pytest.approx(1 / 15, rel=0.1)


def test_an_epoch_of_pairs_ends_with_the_shorter_source() -> None:
    sources = {
        name: {"kind": kind, "path": name, "train": {"start": "0001-02", "stop": "0001-03"}}
        for name, kind in (("low_res", "low-res"), ("high_res", "high-res"))
    }
    paired = recipe(data={"sources": sources}, training={"pairs": True})
    epoch = epoch_of(paired, find_rows(paired.data).sources)
    low = 28 * 72 * 384
    assert epoch.steps == low // 2048
    assert epoch.rows == {"low_res": epoch.steps * 2048, "high_res": epoch.steps * 2048}


def test_features_make_shards_longer_and_flat_rows_are_doubles() -> None:
    assert shard_bytes(0) == 4 * (556 + 368) + 8
    assert shard_bytes(9) - shard_bytes(0) == 4 * 9 * 60
    assert FLAT_BYTES == 8 * 924


# the step


def test_the_ring_sends_all_gradients_twice_less_one_workers_share() -> None:
    assert exchanged_bytes(1000, 1) == 0
    assert exchanged_bytes(1000, 2) == 4000
    assert exchanged_bytes(1000, 8) == pytest.approx(2 * 7 / 8 * 4000)


def test_a_step_by_hand() -> None:
    work = Work(batch_rows=4000, parameters=10_000_000, row_bytes=4000.0)
    speed = Speeds(train=50e3, read=100e3, link=100e9, network=10e9, storage=5e9)
    step = step_of(work, Cluster(workers=16, gpu=True, workers_per_node=8, cpus_per_node=32), speed)
    assert step.compute == pytest.approx(250 / 50e3)
    # 75 MB of 40 MB of gradients, through the cards
    assert step.exchange == pytest.approx(75e6 / 10e9)
    # 5 ms of computing, of which 3.33 can hide them; the last bucket's 25 MiB of 40 MB cannot be hidden at all
    assert step.gradients == pytest.approx(max(7.5e-3 - 5e-3 * 2 / 3, 7.5e-3 * 26_214_400 / 40e6))
    assert step.data == pytest.approx(250 / (100e3 * 3))
    assert step.storage == pytest.approx(16e6 / 5e9)
    assert step.network == pytest.approx((2000 * 4000 + 75e6) / 10e9)
    assert step.seconds == pytest.approx(step.compute + step.gradients)
    assert step.bottleneck == COMPUTE
    assert step.rows_per_s == pytest.approx(4000 / step.seconds)


def test_where_cpus_compute_they_cannot_read_at_the_same_time() -> None:
    step = step_of(Work(256, 1000, 3704.0), Cluster(2, gpu=False, workers_per_node=2, cpus_per_node=2), replace(SPEEDS, train=1000))
    assert step.seconds == pytest.approx(128 / 1000 + 128 / SPEEDS.read + step.gradients)


def test_more_processes_than_cpus_take_turns() -> None:
    crowded, roomy = (
        step_of(Work(256, 1000, 3704.0), Cluster(4, gpu=False, workers_per_node=4, cpus_per_node=cpus), SPEEDS) for cpus in (2, 4)
    )
    assert crowded.compute == pytest.approx(2 * roomy.compute)


def test_cpus_that_workers_share_are_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    seconds = [make_plan(recipe(resources={"workers": count, "use_gpu": False}), Request(gpus=0)).step.compute for count in (1, 2, 4, 8)]
    assert seconds == pytest.approx([seconds[0]] * 4)


def test_a_smaller_cluster_is_planned_as_it_would_be_by_itself() -> None:
    step = plan(16, network_gbps=0.001)._other_steps[8]
    assert step == plan(8, network_gbps=0.001).step


def test_a_step_is_never_shorter_than_the_kernels_that_wait_for_each_other() -> None:
    work = replace(WORK, floor_s=0.01)
    assert step_of(work, NODE, SPEEDS).compute == 0.01
    assert step_of(work, replace(NODE, workers=1), SPEEDS).compute == pytest.approx(4096 / 73e3)


@pytest.mark.parametrize(
    ("slow", "expected"),
    [
        ({}, COMPUTE),
        ({"train": 1e3}, COMPUTE),
        ({"link": 1e9}, GRADIENTS),
        ({"read": 1e3}, DATA),
        ({"storage": 1e8}, STORAGE),
        ({"network": 1e8}, NETWORK),
    ],
)
def test_the_rate_that_is_small_is_the_bottleneck(slow: dict[str, float], expected: str) -> None:
    assert step_of(WORK, NODE, replace(SPEEDS, **slow)).bottleneck == expected


def test_between_nodes_a_slow_network_first_shows_in_the_gradients() -> None:
    assert step_of(WORK, replace(NODE, workers=16, remote=False), replace(SPEEDS, network=5e9)).bottleneck == GRADIENTS
    local = step_of(WORK, replace(NODE, remote=False), replace(SPEEDS, network=1.0))
    assert local.network == 0
    assert local.bottleneck == COMPUTE


@given(works, clusters, speeds, st.sampled_from(["train", "read", "link", "network", "storage"]), st.floats(0.01, 1))
def test_nothing_slower_ever_raises_the_rate(work: Work, cluster: Cluster, speed: Speeds, which: str, factor: float) -> None:
    slower = replace(speed, **{which: getattr(speed, which) * factor})
    assert step_of(work, cluster, slower).rows_per_s <= step_of(work, cluster, speed).rows_per_s * (1 + 1e-9)


def on(workers: int, per_node: int, remote: bool = True) -> Cluster:
    """GPUs that have three CPUs each."""
    return Cluster(workers, True, per_node, 3.0 * min(workers, per_node), remote)


@given(works, speeds, st.integers(1, 256), st.integers(1, 16), st.booleans())
def test_more_gpus_never_lower_the_rate_where_gradients_cost_nothing(
    work: Work, speed: Speeds, gpus: int, per_node: int, remote: bool
) -> None:
    # where they do cost, they may: what a step must exchange grows with the workers, and its arithmetic does not
    free = replace(work, parameters=0)
    fewer, more = (step_of(free, on(count, per_node, remote), speed).rows_per_s for count in (gpus, 2 * gpus))
    assert more >= fewer * (1 - 1e-9)


@given(works, speeds, st.integers(1, 9))
def test_more_gpus_never_lower_the_rate_while_the_exchange_is_a_sixth_of_the_arithmetic(work: Work, speed: Speeds, doublings: int) -> None:
    # c / N of arithmetic and 2 e (N - 1) / N of exchange, two thirds of the former hidden: it falls with N if c / 3 > 2 e
    exchange = 4 * work.parameters / speed.link
    speed = replace(speed, train=min(speed.train, work.batch_rows / (6 * exchange)))
    one = replace(work, floor_s=0.0)
    rates = [step_of(one, on(2**power, 1024, remote=False), speed).rows_per_s for power in range(doublings + 1)]
    assert all(after >= before * (1 - 1e-9) for before, after in pairwise(rates))


def test_gradients_that_take_nothing_leave_the_network_card_to_rows() -> None:
    step = step_of(WORK, replace(NODE, workers=64), SPEEDS)
    assert step.bottleneck == GRADIENTS
    assert step.lifted.network == pytest.approx(8 * 64 * 3704 / 12.5e9)


@given(works, clusters, speeds)
def test_the_bottleneck_is_the_one_whose_absence_is_felt(work: Work, cluster: Cluster, speed: Speeds) -> None:
    step = step_of(work, cluster, speed)
    assert step.bottleneck in PARTS
    assert step.lifted.seconds <= step.seconds
    parts = [step.compute, step.gradients, step.data, step.storage, step.network]
    assert max(parts) * (1 - 1e-9) <= step.seconds <= sum(parts) * (1 + 1e-9)


# the plan


def test_operations_and_parameters_are_those_of_the_recipes_network() -> None:
    base = parse_recipe(recipe().to_dict() | {"network": {"name": "low-res-aqua"}})
    cost = cost_of(base)
    assert cost.parameters == 18_525_030
    assert cost.flop == pytest.approx(5.4e9, rel=0.01)
    # three layers of LSTM and one of GRU, forward and back
    assert cost.serial == 2 * 60 * 4
    wider = cost_of(recipe(data={"features": ["temperature_difference"]}))
    assert wider.flop - cost_of(recipe()).flop == 3 * 2 * 60 * 16


def test_epoch_training_and_gpu_hours_follow_from_the_rate() -> None:
    made = plan(rate=1000.0, read_rate=1e9, link_gbps=1e9)
    rows = 59 * 72 * 384
    steps = rows // 4096
    assert made.epoch.steps == steps
    assert any(f"{rows - steps * 4096:,} of {rows:,} training rows (0." in sentence for sentence in made.sentences)
    assert made.epoch_s == pytest.approx(steps * 4096 / 8000, rel=1e-3)
    assert made.validation_s == pytest.approx(30 * 72 * 384 / (3 * 8000))
    assert made.training_s == pytest.approx(3 * (made.epoch_s + made.validation_s))
    cell = made.tables["expected"]["GPU-hours"][""]
    assert cell == (pytest.approx(8 * made.training_s / 3600), "h")


def test_cpus_per_gpu_are_those_that_keep_it_fed() -> None:
    starved = plan(rate=100_000.0, link_gbps=1e9)
    needed = starved.tables["needed"]["CPUs per GPU, shards"][""][0]
    assert isinstance(needed, float)
    assert needed == pytest.approx(1 + 100_000 / 160_000, rel=1e-3)
    for cpus, bottleneck in ((math.ceil(8 * needed), COMPUTE), (math.floor(8 * needed), DATA)):
        made = plan(rate=100_000.0, link_gbps=1e9, cpus_per_node=cpus, gpus_per_node=8, storage_gbps=1e6)
        assert made.step.bottleneck == bottleneck
    assert "CPUs" in plan(rate=100_000.0, cpus_per_node=9, storage_gbps=1e6).sentences[0]


def test_gigabits_are_eighths_of_gigabytes_and_say_that_they_were_given() -> None:
    rates = plan(storage_gbps=80.0, network_gbps=200.0).rates
    assert (rates["storage"].value, rates["storage"].origin) == (10e9, "given")
    assert (rates["network"].value, rates["network"].origin) == (25e9, "given")
    assert rates["link"].origin == "assumed"


def test_where_gradients_cost_more_than_gpus_bring_the_plan_says_so() -> None:
    base = {"network": {"name": "low-res-aqua", "options": {}}, "training": {"precision": "bf16"}}
    made = plan(64, sections=base, gpus_per_node=1)
    assert made.step.bottleneck == GRADIENTS
    assert any("would train more rows/s" in sentence for sentence in made.sentences)


@pytest.mark.parametrize(("gpus", "lift"), [(2, True), (4, True), (8, False)])
def test_more_gpus_are_advised_only_where_the_plans_own_sizes_say_that_they_help(gpus: int, lift: bool) -> None:
    """Beyond a node of eight GPUs the exchange of gradients passes its network card."""
    base = {"network": {"name": "low-res-aqua", "options": {}}, "training": {"precision": "bf16"}}
    made = plan(gpus, sections=base)
    assert made.step.bottleneck == COMPUTE
    larger = [rate for name, row in made.tables["sizes"].items() if int(name.split()[0]) > gpus for rate in [row["speed"][0]]]
    assert (max(larger) > made.step.rows_per_s) == lift
    assert ("more workers lift it" in made.sentences[0]) == lift
    assert ("and more GPUs do not" in made.sentences[0]) != lift


def test_no_more_gpus_are_advised_than_can_share_a_step() -> None:
    base = {"network": {"name": "low-res-aqua", "options": {}}, "training": {"precision": "float32", "batch_size": 8 * 1001}}
    made = plan(8, sections=base)
    assert "had training.batch_size and its lanes parts for them and training.precision bf16 does" in made.sentences[0]


def test_an_experiment_is_not_taken_for_a_bad_recipe(tmp_path: Path) -> None:
    (tmp_path / "whole.yaml").write_text("name: x\ndirectory: d\nrecipes: {one: {recipe: one.yaml}}\n")
    result = CliRunner().invoke(app, ["plan", str(tmp_path / "whole.yaml"), "--gpus", "1"])
    assert str(result.exception).endswith(
        "is an experiment of several recipes, expected one of these; the whole of it is what leapray run takes"
    )


def test_nodes_hold_their_gpus_and_share_their_cpus() -> None:
    assert gpu_cluster(Request(gpus=16, gpus_per_node=4, cpus_per_node=32), remote=False) == Cluster(16, True, 4, 32, True)
    assert gpu_cluster(Request(gpus=1), remote=False) == Cluster(1, True, 8, 12, False)
    assert gpu_cluster(Request(gpus=1, cpus_per_node=4), remote=False).data_cpus == 3


def test_measured_rates_are_of_this_recipes_network_and_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    sections = {"training": {"batch_size": 64, "accumulate": 2}, "data": {"features": ["temperature_difference"]}}
    threads = torch.get_num_threads()
    made = plan(0, sections=sections, measure=True, seconds=0.01)
    assert torch.get_num_threads() == threads
    rate = made.rates["train"]
    assert rate.origin == "measured"
    assert rate.value > 0
    assert made.rates["read shards"].origin == "assumed"
    monkeypatch.setattr(measure, "measure_step", lambda *_: pytest.fail("a rate that is given is not measured"))
    assert plan(0, sections=sections, measure=True, rate=5.0).rates["train"].origin == "given"


def test_what_is_needed_does_not_depend_on_what_there_is() -> None:
    made, starved = (plan(rate=1e5, read_rate=1e9, link_gbps=1e9, storage_gbps=gigabits) for gigabits in (1000.0, 1.0))
    assert starved.step.bottleneck == STORAGE
    assert starved.tables["needed"] == made.tables["needed"]
    assert made.tables["needed"]["storage, all nodes"][""][0] == pytest.approx(8e5 * shard_bytes(0), rel=1e-3)
    # the step takes what the needed bandwidth exceeds the given one by as much longer
    assert starved.step.seconds == pytest.approx(4096 * shard_bytes(0) / (1e9 / 8))


@pytest.mark.ray
def test_prepared_data_tells_its_true_rows_and_how_fast_it_is_read(ray_cluster: None, tmp_path: Path) -> None:
    small = sample_recipe(tmp_path)
    write_flat(tmp_path / "flat", stop="0001-05")
    prepared = prepare(small)
    found = find_rows(small.data)
    assert {name: dict(held.rows) for name, held in found.sources.items()} == {
        name: {manifest.split: manifest.rows for manifest in prepared.manifests if manifest.source == name} for name in small.data.sources
    }
    size = sum(path.stat().st_size for path in Path(prepared.url).rglob("shard-*.parquet"))
    assert sum(held.shards or 0 for held in found.sources.values()) == size
    made = make_plan(small, Request(gpus=0, measure=True, rate=10.0, seconds=0.01))
    assert made.rates["read shards"].origin == "measured"
    assert made.rates["read shards"].value > 0
    other = small.data.model_copy(update={"rows_per_shard": 7})
    counted = find_rows(other)
    assert "was prepared by another recipe" in counted.found[0]
    assert {name: held.rows for name, held in counted.sources.items()} == {name: held.rows for name, held in found.sources.items()}


def counted_by_reading(data: Data) -> dict[str, dict[str, int]]:
    """What preparing reads."""
    rows: dict[str, dict[str, int]] = {}
    for part in cut(data, "nowhere"):
        read = (len(block.row) for piece in part.pieces for block in read_piece(piece, kind=part.kind))
        rows.setdefault(part.source, {})[part.split] = sum(read)
    return rows


@pytest.mark.parametrize("choice", [{}, {"stride": 2, "phase": 1}, {"fraction": 0.5}, {"stride": 3, "fraction": 0.5}])
def test_flat_files_tell_the_rows_that_will_be_prepared(tmp_path: Path, choice: dict[str, Any]) -> None:
    values = recipe_values(tmp_path)
    values["data"]["sources"]["low_res"] |= choice
    # fewer steps than a month has, which cannot be assumed
    write_flat(tmp_path / "flat", stop="0001-05", steps=20)
    data = parse_recipe(values).data
    found = find_rows(data)
    assert {name: held.rows for name, held in found.sources.items()} == counted_by_reading(data)
    assert [held.assumed for held in found.sources.values()] == [False]
    assert "rows of low_res are counted in the 3 files" in found.found[0]


def test_rows_of_whole_months_are_counted_from_footers_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flat, "read_chosen", lambda *_, **__: pytest.fail("a row was read"))
    write_flat(tmp_path / "flat", stop="0001-05", steps=5)
    assert find_rows(sample_recipe(tmp_path).data).sources["low_res"].rows == {"train": 80, "validation": 40}


def test_of_many_parts_a_few_tell_about_how_many_rows_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leapray.planning.rows._READ", 8)
    read: list[int] = []
    read_chosen = flat.read_chosen
    monkeypatch.setattr(flat, "read_chosen", lambda piece, *names, **options: read.append(1) or read_chosen(piece, *names, **options))
    write_flat(tmp_path / "flat", stop="0001-05", steps=60, columns=2)
    for path in (tmp_path / "flat").iterdir():
        pq.write_table(pq.read_table(path), path, row_group_size=6)
    values = recipe_values(tmp_path)
    values["data"]["sources"]["low_res"]["stride"] = 2
    found = find_rows(parse_recipe(values).data)
    assert len(read) == 16
    assert found.sources["low_res"].rows == {"train": pytest.approx(120, abs=20), "validation": pytest.approx(60, abs=10)}
    assert "are estimated from a part of the 3 files" in found.found[0]


def test_a_source_that_is_not_there_is_assumed_beside_one_that_is(tmp_path: Path) -> None:
    values = recipe_values(tmp_path)
    own = values["data"]["sources"]["low_res"]
    values["data"]["sources"] |= {
        "raw": own | {"path": str(tmp_path / "raw"), "kind": "aqua-planet"},
        "gone": own | {"path": str(tmp_path / "gone"), "kind": "high-res"},
    }
    write_flat(tmp_path / "flat", stop="0001-05", steps=5)
    write_pair(tmp_path / "raw", 0, columns=1)
    recipe = parse_recipe(values)
    found = find_rows(recipe.data)
    assert {name: held.assumed for name, held in found.sources.items()} == {"low_res": False, "raw": True, "gone": True}
    assert found.sources["low_res"].total == 120
    assert found.sources["raw"].rows["validation"] == 30 * 72 * 384
    told = "\n".join(make_plan(recipe, Request(gpus=0, rate=1.0)).sentences)
    assert "rows of low_res are counted in the 3 files" in told
    assert f"raw: holds netCDF files; run `leapray convert {tmp_path / 'raw'} DEST` first" in told
    assert "rows of gone are assumed" in told
    assert "gone: no such file or folder" in told
    assert "they are every step of raw, gone;" in told


def test_a_month_without_rows_is_told_and_rows_are_assumed(tmp_path: Path) -> None:
    write_flat(tmp_path / "flat", stop="0001-04", steps=5)
    (sentence,) = find_rows(sample_recipe(tmp_path).data).found
    assert "are assumed" in sentence
    assert "no rows" in sentence


def test_a_csv_is_counted_by_its_ids_unless_it_is_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [f"train_{row}" for row in range(0, 700 * 384, 384)]
    table = pa.table({"sample_id": ids} | {name: np.zeros(700) for name in (*INPUTS.columns, *TARGETS.columns)})
    (tmp_path / "flat").mkdir()
    csv.write_csv(table, tmp_path / "flat" / "train.csv")
    values = recipe_values(tmp_path)
    data = parse_recipe(values).data
    found = find_rows(data)
    assert found.sources["low_res"].rows == counted_by_reading(data)["low_res"]
    assert found.sources["low_res"].rows["train"] == math.ceil(59 * 72 / 7)
    monkeypatch.setattr("leapray.planning.rows._CSV_READ", 0)
    assert find_rows(data).sources["low_res"].assumed


# the verb


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe().to_yaml())
    return str(path)


def test_json_is_what_is_shown(file: str, tmp_path: Path) -> None:
    target = tmp_path / "plan.json"
    shown = CliRunner().invoke(app, ["plan", file, "--gpus", "8", "--rate", "5000", "--json", str(target)])
    assert shown.exit_code == 0
    content = json.loads(target.read_text())
    for table in content["tables"].values():
        for row, cells in table.items():
            assert row in shown.output
            for cell in cells.values():
                assert (cell if isinstance(cell, str) else in_words((cell["value"], cell["unit"]))) in shown.output
    for sentence in content["sentences"]:
        assert sentence in shown.output
    assert content["tables"]["rates"]["train"] == {"value": {"value": 5000.0, "unit": "rows/s"}, "is": "given", "from": "--rate"}


@pytest.mark.parametrize("name", ["low_res_aqua", "low_res_aqua_features", "low_res_high_res_attention_256"])
def test_the_recipes_that_are_shipped_can_be_planned_without_their_data(name: str) -> None:
    shown = CliRunner().invoke(app, ["plan", str(RECIPES / f"{name}.yaml"), "--gpus", "4"])
    assert shown.exit_code == 0
    assert "first bottleneck" in shown.output


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--gpus", "-1"], "--gpus -1: expected"),
        (["--gpus", "8", "--rate", "0"], "--rate 0: expected a number above 0"),
        (["--gpus", "8", "--storage-gbps", "nan"], "--storage-gbps nan: expected a number above 0"),
        (["--gpus", "8", "--workers", "2"], "give --workers with --gpus 0 alone"),
        (["--gpus", "8", "--rate", "5", "--gpu-tflops", "5"], "leave it out"),
        (["--gpus", "0", "--gpus-per-node", "5"], "leave it out"),
        (["--gpus", "8", "--cpus-per-node", "8"], "leaves none to read rows"),
        (["--gpus", "3"], "must be a multiple of"),
        (["--gpus", "8", "--set", "network.name=mlq"], "network"),
        (["--gpus", "8", "--set", "data.features=[warmth]"], "unknown feature"),
        (["--gpus", "8", "--set", "training.batch_size=80000000"], "do not fill one batch"),
        (["--gpus", "0", "--workers", "1", "--set", "training.precision=fp16"], "needs a GPU"),
        (["--gpus", "8", "--set", "data.sources.low_res.train=null", "--set", "data.statistics=x.json"], "no source has training months"),
        (["--gpus", "8", "--measure"], "this machine has none"),
    ],
)
def test_a_mistake_gets_one_sentence(file: str, options: list[str], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = CliRunner().invoke(app, ["plan", file, *options])
    assert isinstance(result.exception, UserError)
    assert words in str(result.exception)
    assert "\n" not in str(result.exception)


def test_a_step_that_takes_nothing_is_no_division_by_zero() -> None:
    step = Step(True, 1, 1.0, *7 * [0.0])
    assert step.lifted.seconds == 0
