"""The bench of the training step: its arithmetic, what its contestants do, and what it tells; its speed is not judged here."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from leapray.bench import cpu_threads, train_step
from leapray.bench.compare import Settings
from leapray.bench.cpu_threads import compare_threads
from leapray.bench.steps import WARM_STEPS, Bare, InMemory, Original, Ours, Setup, forward_flop, phases, random_batches, steady
from leapray.bench.train_step import ORIGINAL, _on_gpu, compare_steps, run
from leapray.errors import UserError
from leapray.models.low_res_aqua import LowResAqua
from leapray.models.registry import build_network
from leapray.recipe import Choice, parse_recipe
from tests.columns import CHANNELS, SCORED

NETWORK = Choice(name="low-res-aqua", options={"encoder": (8,), "lstm_hidden": 4, "lstm_layers": 1, "gru_hidden": 2, "head": ()})
SETUP = Setup(torch.device("cpu"), NETWORK, "float32", batch_size=16, matrix=32, seconds=0.01, steps=3)
PHASES = {"data and copy", "forward", "loss", "backward", "optimizer", "rest"}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_operations_of_the_base_network_are_those_of_its_layers() -> None:
    levels, code, hidden = 60, 100, 512
    lstm = sum(2 * 4 * hidden * (width + hidden) for width in (2 * 25, 2 * hidden, 2 * hidden))
    gru = 2 * 3 * 16 * (2 * hidden + 16)
    autoencoder = 2 * (levels * 25 * 375 + 375 * 200 + 200 * code)
    head = levels * 2 * 16 * 960 + 960 * 368
    flop = forward_flop(build_network("low-res-aqua", {}, CHANNELS))
    assert flop == 2 * (levels * (lstm + gru) + autoencoder + head)
    assert flop == pytest.approx(1.81e9, rel=0.005)


def test_operations_leave_the_network_as_it_was() -> None:
    network = SETUP.build()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert forward_flop(network) == forward_flop(network) > 0
    assert not any(module._forward_hooks for module in network.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_the_originals_step_is_adamw_on_the_huber_loss_of_masked_columns() -> None:
    held = random_batches(SETUP.batch_size)
    original, network = Original(SETUP, held), SETUP.build()
    optimizer = torch.optim.AdamW(network.parameters(), lr=6.5e-4, weight_decay=2e-3)
    for batch in held[:2]:
        original.step()
        error = network(torch.from_numpy(batch["inputs"])) - torch.from_numpy(batch["targets"])
        huber = torch.where(error.abs() < 1, error.square() / 2, error.abs() - 0.5)[:, torch.from_numpy(SCORED)]
        optimizer.zero_grad()
        # the mean of the original's loss is over all 368 columns
        (huber.sum() / error.numel()).backward()
        optimizer.step()
    for ours, theirs in zip(network.parameters(), original._network.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_batches_in_memory_come_again_in_their_order() -> None:
    held = random_batches(4)
    given = list(InMemory(held, 2 * len(held) + 1).train(0))
    assert [batch["inputs"] is held[number % len(held)]["inputs"] for number, batch in enumerate(given)] == [True] * 17
    assert not np.array_equal(held[0]["inputs"], held[1]["inputs"])


def test_a_rate_is_that_of_the_steps_after_the_warm_ones() -> None:
    def record(step: int, rows_per_s: float, seconds: float, wait: float, event: str = "step") -> dict:
        return {"event": event, "step": step, "rows_per_s": rows_per_s, "seconds": seconds, "data_wait_s": wait}

    warm = [record(1, 1.0, 100.0, 90.0), record(WARM_STEPS, 1.0, 100.0, 90.0)]
    assert steady(warm) == {}
    counted = [record(21, 10.0, 2.0, 0.5), record(40, 40.0, 1.0, 0.1), {"event": "validation", "step": 40}]
    assert steady(warm + counted) == {"rows/s": pytest.approx(60 / 3), "wait": pytest.approx(0.6 / 3)}


@pytest.mark.parametrize("contestant", [lambda held: Ours(SETUP, held), lambda held: Original(SETUP, held), lambda _: Bare(SETUP)])
def test_a_contestant_takes_the_steps_of_a_round(contestant, monkeypatch: pytest.MonkeyPatch) -> None:
    modes, forward = [], LowResAqua.forward
    monkeypatch.setattr(LowResAqua, "forward", lambda network, x: modes.append(network.training) or forward(network, x))
    figures = contestant(random_batches(SETUP.batch_size))()
    assert sum(modes) == WARM_STEPS + SETUP.steps
    assert figures["rows/s"] > 0


@pytest.mark.parametrize("threads", [1, 2])
def test_phases_are_parts_of_every_step_after_the_warm_ones(monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    torch.set_num_threads(threads)
    # a clock that ticks once each time it is read: a phase's time is then how often it ended
    ticks = iter(range(100_000))
    monkeypatch.setattr("leapray.bench.steps._now", lambda device: next(ticks) / 1000)
    parts = phases(SETUP, random_batches(SETUP.batch_size))
    parameters = len(list(SETUP.build().parameters()))
    assert set(parts) == PHASES
    assert {phase: parts[phase] for phase in ("data and copy", "forward", "loss", "backward", "optimizer")} == pytest.approx(
        {"data and copy": 1, "forward": 1, "loss": 1, "backward": parameters, "optimizer": 1}
    )


def test_steps_are_compared_by_name() -> None:
    rows = compare_steps(SETUP, Settings(Path("unused"), quick=True))
    assert [row.case for row in rows[:3]] == ["step, original's step", "step, network alone", "step, matrix product"]
    assert {row.case.removesuffix(", of a step") for row in rows[3:]} == PHASES
    assert sum(row.ratio for row in rows[3:]) == pytest.approx(1)
    speed, alone, share = rows[:3]
    assert share.ours == pytest.approx(speed.ours * 3 * forward_flop(SETUP.build()) / 1e12)
    assert (speed.bar, alone.bar.value, share.bar) == (None, 0.95, None)
    assert {row.unit for row in rows} == {"rows/s", "TFLOP/s", "ms"}


def test_rows_in_threads_are_compared_idle_and_beside_a_busy_process(monkeypatch: pytest.MonkeyPatch) -> None:
    shares, busy, forward = [], [], LowResAqua.forward

    def watched(network: LowResAqua, x: torch.Tensor) -> torch.Tensor:
        if network.training:
            shares.append((len(x), torch.get_num_threads(), sum(busy)))
        return forward(network, x)

    @contextmanager
    def one_busy_process() -> Iterator[None]:
        busy.append(1)
        yield
        busy.pop()

    monkeypatch.setattr(LowResAqua, "forward", watched)
    monkeypatch.setattr(cpu_threads, "one_busy_process", one_busy_process)
    monkeypatch.setattr(cpu_threads, "cores", lambda: 2)
    rows = compare_threads(SETUP, Settings(Path("unused"), quick=True))
    assert [(row.case, row.bar and row.bar.value) for row in rows] == [
        ("idle, best ordinary step", 0.95),
        ("idle, operators in threads", None),
        ("busy process, operators in threads", 8),
        ("busy process, one thread", None),
    ]
    assert rows[0].baseline >= rows[1].baseline > 0
    half, whole = SETUP.batch_size // 2, SETUP.batch_size
    assert set(shares) == {(half, 1, 0), (whole, 2, 0), (whole, 1, 0), (half, 1, 1), (whole, 2, 1), (whole, 1, 1)}
    assert torch.get_num_threads() == 1
    monkeypatch.setattr(cpu_threads, "cores", lambda: 1)
    assert compare_threads(SETUP, Settings(Path("unused"), quick=True)) == []


def test_a_gpu_has_more_bars() -> None:
    assert _on_gpu(replace(SETUP, device=torch.device("cuda")), ORIGINAL) is ORIGINAL
    assert _on_gpu(SETUP, ORIGINAL) is None


def test_another_cluster_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere:6379")
    with pytest.raises(UserError, match="bench train-step measures this machine alone; unset RAY_ADDRESS"):
        run(Settings(tmp_path))


def test_a_training_too_short_to_be_seen_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only = {"event": "step", "step": WARM_STEPS, "steps": 2 * WARM_STEPS}
    monkeypatch.setattr(train_step, "train", lambda recipe, progress, threads: progress(only))
    recipe = parse_recipe(
        {
            "name": "short",
            "data": {
                "prepared": "unused",
                "sources": {"low_res": {"kind": "low-res", "path": "unused", "train": {"start": "0001-02", "stop": "0001-03"}}},
            },
            "network": NETWORK.model_dump(),
            "training": SETUP.training.model_dump() | {"run": str(tmp_path / "run")},
        }
    )
    with pytest.raises(UserError, match="ended before its speed could be seen; give it more --rows"):
        train_step._under_ray(recipe)
