"""Scoring a network on prepared data, and the mean of weights; with small prepared data for other tests."""

import copy
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import r2_score
from torch import nn

from leapray.climsim.calendar import STEPS_PER_DAY
from leapray.climsim.row_keys import row_key
from leapray.climsim.schema import KAGGLE
from leapray.data.fitting import Fitting
from leapray.data.moments import Moments
from leapray.data.shards import Manifest, Prepared, Rows, ShardFile, write_shard
from leapray.errors import UserError
from leapray.evaluation.metrics import ErrorMoments
from leapray.models.registry import build_network
from leapray.recipe import Choice
from leapray.training.scoring import days, mean_of, score_network
from tests.columns import CHANNELS, INPUTS, LEARNED, SCORED, TARGETS

CPU = torch.device("cpu")
ROWS = {"train": [24, 16], "validation": [15, 10], "blend": [12, 8], "test": [20, 7, 13]}


def random_rows(count: int, first_step: int, generator: np.random.Generator) -> Rows:
    """Scaled rows of a linear map with noise, 4 columns a step, a third of a day apart."""
    matrix = np.random.default_rng(7).normal(size=(INPUTS.width, TARGETS.width)) / INPUTS.width**0.5
    inputs = generator.normal(size=(count, INPUTS.width)).astype(np.float32)
    targets = (inputs @ matrix + 0.3 * generator.normal(size=(count, TARGETS.width))).astype(np.float32)
    number = np.arange(count)
    row = row_key("low-res", first_step + number // 4 * (STEPS_PER_DAY // 3), number % 4)
    return {"inputs": inputs, "targets": targets, "row": row}


def prepared_shards(
    root: Path, splits: tuple[str, ...] = tuple(ROWS), seed: int = 0, timed: bool = True
) -> tuple[Prepared, dict[str, Rows]]:
    """Prepared data of these splits, written without Ray, and the rows of each split."""
    manifests, held = [], {}
    for month, split in enumerate(splits):
        url, generator = root / split / "low_res", np.random.default_rng([seed, month])
        rows = random_rows(sum(ROWS[split]), 30 * month * STEPS_PER_DAY, generator)
        if not timed:
            rows["row"] = -1 - np.arange(len(rows["row"]))
        held[split] = rows
        order, edges = generator.permutation(len(rows["row"])), np.cumsum([0, *ROWS[split]])
        for index, (start, stop) in enumerate(pairwise(edges)):
            write_shard(str(url / f"{index}.parquet"), {name: values[order[start:stop]] for name, values in rows.items()})
        files = tuple(ShardFile(f"{index}.parquet", count, 0) for index, count in enumerate(ROWS[split]))
        manifests.append(Manifest(str(url), "low_res", "low-res", split, "", "", seed, "", "refuse", files, None, {}, 0, {}))
    fitting = Fitting(KAGGLE, Choice(name="standard", options={"departures": False}), ())
    transform = fitting.fit(Moments.of(np.random.default_rng(seed).normal(size=(9, fitting.width))), {})
    return Prepared(str(root), transform, tuple(manifests)), held


def network() -> nn.Module:
    torch.manual_seed(3)
    return build_network("mlp", {"hidden": [8], "confidence": True}, CHANNELS)


def predicted(net: nn.Module, rows: Rows) -> np.ndarray:
    with torch.no_grad():
        return net.eval()(torch.from_numpy(rows["inputs"]))[:, : TARGETS.width].numpy()


def physical(prepared: Prepared, targets: np.ndarray) -> np.ndarray:
    """Scaled targets in physical units, where none is a departure."""
    scaling = prepared.transform.targets
    return targets.astype(np.float64) * scaling.scale.numpy() + scaling.mean.numpy()


@pytest.mark.parametrize("split", ROWS)
@pytest.mark.parametrize("batch", [4096, 3])
def test_every_row_of_a_split_is_scored_once(tmp_path, split, batch, monkeypatch):
    monkeypatch.setattr("leapray.training.scoring._BATCH_ROWS", batch)
    prepared, held = prepared_shards(tmp_path)
    rows, net = held[split], network().train()
    found = score_network(net, prepared, split, CPU)
    truth, prediction = rows["targets"], predicted(net, rows)
    score = found.score()
    assert score.rows == len(truth)
    assert score.learned == pytest.approx(r2_score(truth[:, LEARNED], prediction[:, LEARNED]), abs=1e-6)
    expected = ErrorMoments.of(TARGETS, physical(prepared, truth), physical(prepared, prediction)).score(prepared.transform.statistics)
    for name in ("skill", "attainable", "r2"):
        ours, theirs = (getattr(figures.columns, name)[SCORED] for figures in (score, expected))
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)


def test_moments_are_kept_apart_by_the_day_of_the_rows(tmp_path):
    prepared, held = prepared_shards(tmp_path)
    rows, net = held["test"], network()
    found = score_network(net, prepared, "test", CPU).blocks
    # 40 rows, 4 a step and 3 steps a day, from the 91st day on
    assert {day: moments.count for day, moments in sorted(found.items())} == {90: 12, 91: 12, 92: 12, 93: 4}
    for day, moments in found.items():
        these = slice(12 * (day - 90), 12 * (day - 89))
        truth, prediction = (physical(prepared, values)[these] for values in (rows["targets"], predicted(net, rows)))
        np.testing.assert_allclose(moments.to_array(), ErrorMoments.of(TARGETS, truth, prediction).to_array(), rtol=1e-5, atol=1e-6)


def test_the_day_of_a_row_is_that_of_its_key_whatever_its_kind_and_column():
    steps = np.array([0, STEPS_PER_DAY - 1, STEPS_PER_DAY, 8 * 365 * STEPS_PER_DAY])
    for kind, ncol in (("low-res", 0), ("aqua-planet", 383), ("high-res", 21599)):
        assert days(row_key(kind, steps, np.full(4, ncol))).tolist() == [0, 0, 1, 8 * 365]
    assert days(np.array([-1, row_key("low-res", np.array(72), np.array(5)), -99])).tolist() == [-1, 1, -1]


def test_rows_of_unknown_time_are_scored_together(tmp_path):
    prepared, held = prepared_shards(tmp_path, timed=False)
    net = network()
    found = score_network(net, prepared, "test", CPU)
    assert list(found.blocks) == [-1]
    expected = ErrorMoments.of(TARGETS, held["test"]["targets"], predicted(net, held["test"])).score(prepared.transform.statistics).learned
    assert found.score().learned == pytest.approx(expected, abs=1e-6)


def test_scoring_changes_no_weights_and_takes_no_gradient(tmp_path):
    prepared, _ = prepared_shards(tmp_path)
    net = network()
    before = copy.deepcopy(net.state_dict())
    score_network(net, prepared, "test", CPU)
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in net.parameters())


def test_a_damaged_shard_is_named(tmp_path):
    prepared, _ = prepared_shards(tmp_path)
    shard = tmp_path / "test" / "low_res" / "1.parquet"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 0xFF
    shard.write_bytes(content)
    with pytest.raises(UserError, match=r"test/low_res/1\.parquet"):
        score_network(network(), prepared, "test", CPU)


def test_the_mean_of_weights_is_that_in_float64_and_counts_are_the_firsts():
    generator = np.random.default_rng(0)
    states = [
        {
            "weight": torch.from_numpy(generator.normal(size=(5, 3)).astype(np.float32) * 10.0**place),
            "half": torch.from_numpy(generator.normal(size=4)).bfloat16(),
            "count": torch.tensor(place),
        }
        for place in range(6)
    ]
    found = mean_of(states)
    expected = np.mean([state["weight"].double().numpy() for state in states], axis=0)
    np.testing.assert_array_equal(found["weight"].numpy(), expected.astype(np.float32))
    assert (found["half"].dtype, found["count"].dtype) == (torch.bfloat16, torch.int64)
    assert found["count"] == 0
    found["count"] += 1
    assert states[0]["count"] == 0


def test_the_mean_of_one_is_itself():
    state = network().state_dict()
    torch.testing.assert_close(mean_of([state]), dict(state), rtol=0, atol=0)
