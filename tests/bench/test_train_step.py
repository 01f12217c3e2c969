"""The bench of the training step: what its contestants do, and what it tells; its speed is not judged here."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from leapray.bench import train_step
from leapray.bench.compare import Settings
from leapray.bench.steps import WARM_STEPS, FewSteps, Work, bare, original, original_step, ours, steady
from leapray.bench.train_step import ORIGINAL, _on_gpu, compare_step, compare_threads, run
from leapray.data.fitting import Fitting
from leapray.data.transform import Transform
from leapray.errors import UserError
from leapray.models.cost import cost_of
from leapray.models.low_res_aqua import LowResAqua
from leapray.recipe import Choice, Resources, parse_recipe
from leapray.training.phases import PHASES
from tests.columns import INPUTS, SCORED, TARGETS
from tests.samples import recipe_values, sample_recipe, write_flat

NETWORK = {"name": "low-res-aqua", "options": {"encoder": (8,), "lstm_hidden": 4, "lstm_layers": 1, "gru_hidden": 2, "head": ()}}
ROWS = 16
QUICK = Settings(Path("unused"), quick=True)


class Random:
    """Batches of random rows, the same in every epoch."""

    sources, kinds = ("low_res",), ("low-res",)
    transform = Transform.identity(Fitting(sample_recipe(Path("unused")).data.variable_set, Choice(name="standard")).variables)
    steps, validation_rows = 12, ROWS

    def train(self, epoch: int, first_step: int = 0) -> Iterator[dict[str, np.ndarray]]:
        generator = np.random.default_rng(0)
        for _ in range(self.steps):
            values = {
                name: generator.standard_normal((ROWS, one.width), np.float32) for name, one in (("inputs", INPUTS), ("targets", TARGETS))
            }
            yield {**values, "source": np.zeros(ROWS, np.int16), "row": np.arange(ROWS)}

    def validate(self) -> Iterator[dict[str, np.ndarray]]:
        yield next(self.train(0))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def work(tmp_path: Path) -> Work:
    recipe = parse_recipe(recipe_values(tmp_path, batch_size=ROWS) | {"network": NETWORK})
    return Work.of(recipe, Random())


def test_the_originals_step_is_adamw_on_the_huber_loss_of_masked_columns(work: Work) -> None:
    theirs, network = work.build(), work.build()
    step = original_step(work, theirs)
    optimizer = torch.optim.AdamW(network.parameters(), lr=6.5e-4, weight_decay=2e-3)
    for batch in work.held[:3]:
        step()
        error = network(torch.from_numpy(batch["inputs"])) - torch.from_numpy(batch["targets"])
        huber = torch.where(error.abs() < 1, error.square() / 2, error.abs() - 0.5)[:, torch.from_numpy(SCORED)]
        optimizer.zero_grad()
        # the mean of the original's loss is over all columns
        (huber.sum() / error.numel()).backward()
        optimizer.step()
    for mine, his in zip(network.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, his, rtol=1e-4, atol=1e-6)


def test_a_few_steps_take_batches_of_epoch_after_epoch_or_those_in_memory_in_turn(work: Work) -> None:
    held = work.held[:3]
    assert [batch is held[number % 3] for number, batch in enumerate(FewSteps(Random(), 7, held).train(0))] == [True] * 7
    fresh = list(FewSteps(Random(), Random.steps + 1).train(0))
    assert len(fresh) == Random.steps + 1
    assert np.array_equal(fresh[0]["inputs"], fresh[-1]["inputs"])
    assert not np.array_equal(fresh[0]["inputs"], fresh[1]["inputs"])


def test_a_rate_is_that_of_the_steps_after_the_warm_ones() -> None:
    def record(step: int, rows_per_s: float, seconds: float, wait: float) -> dict[str, Any]:
        return {"event": "step", "step": step, "rows_per_s": rows_per_s, "seconds": seconds, "data_wait_s": wait}

    warm = [record(1, 1.0, 100.0, 90.0), record(5, 1.0, 100.0, 90.0)]
    assert steady(warm, 5) == {}
    counted = [record(21, 10.0, 2.0, 0.5), record(40, 40.0, 1.0, 0.1), {"event": "validation", "step": 40}]
    assert steady(warm + counted, 5) == {"rows/s": pytest.approx(60 / 3), "wait": pytest.approx(0.6 / 3)}


@pytest.mark.parametrize("contestant", [ours, original, bare])
def test_a_contestant_takes_the_steps_of_a_round(contestant: Any, work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[bool] = []
    forward = LowResAqua.forward
    monkeypatch.setattr(LowResAqua, "forward", lambda network, x: modes.append(network.training) or forward(network, x))
    assert contestant(work)["rows/s"] > 0
    assert sum(modes) == WARM_STEPS + work.steps


def test_steps_are_compared_by_name_and_phases_add_up(work: Work) -> None:
    rows = compare_step(work, QUICK, {"original": original})
    assert [row.case for row in rows[:3]] == ["step, original's step", "step, network alone", "step, matrix product"]
    assert [row.case for row in rows[3:]] == [f"{name}, of a step" for name in (*PHASES, "rest")]
    assert sum(row.ratio for row in rows[3:]) == pytest.approx(1)
    speed, alone, share = rows[:3]
    assert share.ours == pytest.approx(speed.ours * cost_of(work.build(), INPUTS.width).training_flop / 1e12)
    assert (speed.bar, alone.bar and alone.bar.value, share.bar) == (None, 0.95, None)
    assert {row.unit for row in rows} == {"rows/s", "TFLOP/s", "ms"}


@pytest.mark.ray
def test_the_step_of_ones_own_recipe_is_taken_apart_on_its_prepared_data(ray_cluster: None, tmp_path: Path) -> None:
    from leapray.data.prepare import prepare

    write_flat(tmp_path / "flat", stop="0001-05")
    recipe = sample_recipe(tmp_path).model_copy(update={"resources": Resources(workers=2)})
    with pytest.raises(UserError, match="prepare"):
        run(QUICK, recipe)
    prepare(recipe)
    rows = run(QUICK, recipe)
    assert [row.case for row in rows][:3] == ["step, network alone", "step, matrix product", "data wait, of a step"]
    assert all(row.ours > 0 for row in rows[:4])
    assert not (tmp_path / "run").exists()


def test_what_has_no_steps_or_no_gpu_is_refused(tmp_path: Path) -> None:
    recipe = sample_recipe(tmp_path)
    with pytest.raises(UserError, match="ridge is solved for"):
        run(QUICK, recipe.model_copy(update={"network": Choice(name="ridge")}))
    with pytest.raises(UserError, match="asks for a GPU"):
        run(QUICK, recipe.model_copy(update={"resources": Resources(use_gpu=True)}))


def test_rows_in_threads_are_compared_idle_and_beside_a_busy_process(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[tuple[int, int, int]] = []
    busy: list[int] = []
    forward = LowResAqua.forward

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
    monkeypatch.setattr(train_step, "one_busy_process", one_busy_process)
    monkeypatch.setattr(train_step, "cores", lambda: 2)
    rows = compare_threads(work, QUICK)
    assert [(row.case, row.bar and row.bar.value) for row in rows] == [
        ("idle, best ordinary step", 0.95),
        ("busy process, operators in threads", 8),
        ("busy process, one thread", None),
    ]
    half, whole = ROWS // 2, ROWS
    assert set(shares) == {(half, 1, 0), (whole, 2, 0), (whole, 1, 0), (half, 1, 1), (whole, 2, 1), (whole, 1, 1)}
    assert torch.get_num_threads() == 1
    monkeypatch.setattr(train_step, "cores", lambda: 1)
    assert compare_threads(work, QUICK) == []


def test_a_gpu_has_more_bars(work: Work) -> None:
    assert _on_gpu(replace(work, device=torch.device("cuda")), ORIGINAL) is ORIGINAL
    assert _on_gpu(work, ORIGINAL) is None


def test_a_training_too_short_to_be_seen_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only = {"event": "step", "step": WARM_STEPS, "steps": 2 * WARM_STEPS}
    monkeypatch.setattr(train_step, "train", lambda recipe, progress, threads: progress(only))
    with pytest.raises(UserError, match="ended before its speed could be measured; give it more --rows"):
        train_step._under_ray(sample_recipe(tmp_path))
