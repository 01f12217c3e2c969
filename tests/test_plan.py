"""What a plan says: rows and steps of data that is there, sizes by hand, time and bandwidth by a rate, and what can never run."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from leapray.cli import app
from leapray.data.row_bytes import shard_row_bytes
from leapray.errors import UserError
from leapray.models.cost import cost_of
from leapray.models.registry import build_network
from leapray.plan import Plan, make_plan
from leapray.recipe import Recipe, parse_recipe
from tests.columns import CHANNELS, with_features

RECIPES = Path(__file__).parent.parent / "jobs" / "recipes"
BASE = {"network": {"name": "low-res-aqua", "options": {}}, "training": {"precision": "bf16"}}
TRAINING_ROWS, VALIDATION_ROWS = 59 * 72 * 384, 30 * 72 * 384


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


def figure(plan: Plan, name: str) -> float:
    return plan.figures[name][0]


def test_an_epoch_of_pairs_ends_with_the_shorter_source() -> None:
    sources = {
        name: {"kind": kind, "path": name, "train": {"start": "0001-02", "stop": "0001-03"}}
        for name, kind in (("low_res", "low-res"), ("high_res", "high-res"))
    }
    plan = make_plan(recipe(data={"sources": sources}, training={"pairs": True}))
    assert figure(plan, "rows: low_res, train") == 28 * 72 * 384
    assert figure(plan, "rows: high_res, train") == 28 * 72 * 21600
    assert figure(plan, "steps of an epoch") == 28 * 72 * 384 // 2048


def test_sizes_by_hand() -> None:
    plan = make_plan(recipe(training={"ema": {"decay": 0.9}, "accumulate": 2}))
    steps, rows = TRAINING_ROWS // 4096, TRAINING_ROWS + VALIDATION_ROWS
    parameters = 556 * 16 + 16 + 16 * 368 + 368
    forward = 2 * (556 * 16 + 16 * 368)
    expected = {
        "rows: low_res, train": TRAINING_ROWS,
        "rows: low_res, validation": VALIDATION_ROWS,
        "all rows: netCDF": rows * 8 * (10 * 60 + 17 + 6 * 60 + 8),
        "all rows: flat parquet at most": rows * 8 * 924,
        "all rows: shards": rows * (4 * 924 + 8),
        "steps of an epoch": steps,
        "parameters": parameters,
        "operations: a training row": 3 * forward,
        "operations: all epochs": 3 * (steps * 4096 * 3 * forward + VALIDATION_ROWS * forward),
        "memory: weights, gradients, AdamW": 5 * 4 * parameters,
        # a hidden layer and the inputs, of half of the 512 rows at a time
        "memory: activations, about": 256 * 4 * (556 + 16),
        # a lane's shard and three that are read ahead
        "memory: shards in a worker": 4 * 8192 * (4 * 924 + 8),
    }
    assert {name: figure(plan, name) for name in expected} == expected


def test_operations_and_kernels_are_those_of_the_recipes_network() -> None:
    base = cost_of(build_network("low-res-aqua", {}, CHANNELS), 556)
    assert base.parameters == 18_525_030
    assert base.training_flop == pytest.approx(5.4e9, rel=0.01)
    # three layers of LSTM and one of GRU by level, four linear layers of the encoder and two of the head
    assert base.kernels == 2 * 60 * 4 + 3 * (
        len([m for m in build_network("low-res-aqua", {}, CHANNELS).modules() if isinstance(m, torch.nn.Linear)])
    )
    # an LSTM's gates, state and output at least, of both directions of its three layers; weights do not count
    assert 60 * 6 * 512 * 4 * 6 < base.activation_bytes < 4 * base.parameters
    plain, wider = (make_plan(recipe(data={"features": names})) for names in ([], ["temperature_difference"]))
    assert figure(wider, "operations: a training row") - figure(plain, "operations: a training row") == 3 * 2 * 60 * 16
    assert shard_row_bytes(with_features(1)) - shard_row_bytes(CHANNELS) == 4 * 60


def test_counting_leaves_the_network_as_it_was() -> None:
    network = build_network("low-res-aqua", {"encoder": (8,), "lstm_hidden": 4, "lstm_layers": 1, "gru_hidden": 2, "head": ()}, CHANNELS)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert cost_of(network, 556) == cost_of(network, 556)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_time_and_bandwidth_follow_from_the_rate() -> None:
    plan = make_plan(recipe(), rate=1000.0)
    steps, parameters = TRAINING_ROWS // 4096, figure(plan, "parameters")
    step, epoch = 4096 / 8000, steps * 4096 / 8000 + VALIDATION_ROWS / (3 * 8000)
    expected = {
        "rows/s": 8000.0,
        "time: a step": step,
        "time: an epoch": epoch,
        "time: all epochs": 3 * epoch,
        "GPU-hours": 8 * 3 * epoch / 3600,
        "bandwidth: storage": 8000.0 * (4 * 924 + 8),
        # all gradients twice, less an eighth
        "bandwidth: gradients from each worker": 2 * 7 / 8 * 4 * parameters / step,
    }
    assert {name: figure(plan, name) for name in expected} == pytest.approx(expected)
    by_flops = make_plan(recipe(), tflops=1e-9 * figure(plan, "operations: a training row"))
    assert figure(by_flops, "rows/s") == pytest.approx(8000)


def test_flat_files_need_twice_the_bandwidth_and_one_worker_no_exchange() -> None:
    plan = make_plan(recipe(data={"stream_from": "flat"}, resources={"workers": 1}), rate=1000.0)
    assert figure(plan, "bandwidth: storage") == 1000 * 8 * 924
    assert figure(plan, "bandwidth: gradients from each worker") == 0


def test_without_a_rate_there_is_no_time() -> None:
    plan = make_plan(recipe())
    assert not any(unit in ("s", "h", "rows/s", "B/s") for _, unit in plan.figures.values())
    assert "--rate" in plan.notes[-1]


@pytest.mark.parametrize(("sections", "rate", "bound"), [({}, 1e6, False), ({}, 1e8, True), (BASE, 73e3, False), (BASE, 1e6, True)])
def test_a_step_that_is_over_before_its_kernels_have_started_is_called_launch_bound(
    sections: dict[str, Any], rate: float, bound: bool
) -> None:
    plan = make_plan(recipe(**sections), rate=rate)
    assert any("launch-bound" in note for note in plan.notes) == bound
    assert ("time: a step" in plan.figures) == (not bound)


def test_a_step_on_cpus_is_never_launch_bound() -> None:
    plan = make_plan(recipe(resources={"use_gpu": False}), rate=1e9)
    assert dict(plan.rows())["time: a step"] == "under 1 ms"
    assert "worker-hours" in plan.figures


def test_a_measured_rate_is_that_of_the_recipes_own_step() -> None:
    own = torch.get_num_threads()
    sections = {"training": {"batch_size": 64, "accumulate": 2, "pairs": False}, "data": {"features": ["temperature_difference"]}}
    plan = make_plan(recipe(**sections, resources={"use_gpu": False, "workers": 1}), measure_seconds=0.01)
    assert torch.get_num_threads() == own
    assert 0 < figure(plan, "rows/s") < math.inf
    assert "measured on" in plan.notes[-1]


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe().to_yaml())
    return str(path)


def test_json_has_the_figures_that_are_shown(file: str, tmp_path: Path) -> None:
    target = tmp_path / "plan.json"
    shown = CliRunner().invoke(app, ["plan", file, "--gpus", "8", "--rate", "5000", "--json", str(target)])
    assert shown.exit_code == 0
    content = json.loads(target.read_text())
    assert content["figures"]["rows/s"] == {"value": 40000.0, "unit": "rows/s"}
    assert content["figures"]["rows: low_res, train"]["value"] == TRAINING_ROWS
    lines = [" ".join(line.split()) for line in shown.output.splitlines()]
    assert "rows/s 40,000" in lines
    assert "rows: low_res, train 1.63 million" in lines
    assert all(any(name in line for line in lines) for name in content["figures"])
    assert all(note in lines for note in content["notes"])


@pytest.mark.parametrize("name", ["low_res_aqua", "low_res_aqua_features", "low_res_high_res_attention_256"])
def test_the_recipes_that_are_shipped_can_be_planned_without_their_data(name: str) -> None:
    shown = CliRunner().invoke(app, ["plan", str(RECIPES / f"{name}.yaml"), "--gpus", "4", "--tflops", "100"])
    assert shown.exit_code == 0
    assert "GPU-hours" in shown.output


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--gpus", "-1"], "--gpus"),
        (["--gpus", "8", "--rate", "0"], "--rate 0: expected a number above 0"),
        (["--gpus", "8", "--tflops", "nan"], "--tflops nan: expected a number above 0"),
        (["--gpus", "8", "--workers", "2"], "--workers"),
        (["--gpus", "8", "--rate", "5", "--tflops", "5"], "give one of them"),
        (["--gpus", "8", "--rate", "5", "--measure"], "give one of them"),
        (["--gpus", "3"], "must be a multiple of"),
        (["--gpus", "8", "--set", "network.name=mlq"], "network"),
        (["--gpus", "8", "--set", "network={name: ridge}"], "no steps to plan"),
        (["--gpus", "8", "--set", "data.features=[warmth]"], "unknown feature"),
        (["--gpus", "8", "--set", "training.batch_size=80000000"], "do not fill one batch"),
        (["--gpus", "0", "--workers", "1", "--set", "training.precision=fp16"], "needs a GPU"),
        (["--gpus", "0", "--workers", "4096", "--set", "training.batch_size=4096"], "training wants 4096 workers"),
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


def test_an_experiment_is_not_taken_for_a_bad_recipe(tmp_path: Path) -> None:
    (tmp_path / "whole.yaml").write_text("name: x\ndirectory: d\nrecipes: {one: {recipe: one.yaml}}\n")
    result = CliRunner().invoke(app, ["plan", str(tmp_path / "whole.yaml"), "--gpus", "1"])
    assert str(result.exception).endswith(
        "is an experiment of several recipes, expected one of these; the whole of it is what leapray run takes"
    )
