"""Which score chooses, where a target column that hardly varies in the validation rows decides R2, and scores in physical units."""

import numpy as np
import pytest
import torch

from leapray.climsim.schema import KAGGLE
from leapray.data.fitting import Fitting
from leapray.data.moments import Moments
from leapray.recipe import Choice
from leapray.training.loop import Loop
from tests.columns import INPUTS, LEARNED, TARGETS
from tests.samples import random_rows
from tests.training.test_loop import CPU, Batches, fit, linear, training

SILENT = int(np.flatnonzero(LEARNED)[100])
SPREAD = 1e-10
"""Standard deviation of the silent column in the validation rows; in training it is 1."""


class WithSilentColumn(Batches):
    """A column that a network which learns gets more and more wrong: it is 1 in training, and next to nothing in the validation rows."""

    def __init__(self):
        super().__init__()
        generator = np.random.default_rng(8)
        for part in self.training:
            part["targets"] = self._with(part["targets"], 1.0)
        for part in self.validation:
            part["targets"] = self._with(part["targets"], SPREAD * generator.normal(size=len(part["targets"])))

    @staticmethod
    def _with(targets, values):
        changed = targets.copy()
        changed[:, SILENT] = values
        return changed


def silent_at_first():
    network = linear()
    with torch.no_grad():
        network[1].weight[SILENT] = 0
        network[1].bias[SILENT] = 0
    return network


def history(**settings):
    return fit(Loop(silent_at_first(), WithSilentColumn(), training(epochs=4, **settings), CPU))


def test_skill_keeps_the_epoch_that_learned_most_and_r2_the_one_that_the_silent_column_likes():
    by_skill, by_r2 = history(), history(select="r2")
    for one, other in zip(by_skill.history, by_r2.history, strict=True):
        assert (one["skill"], one["r2"]) == (other["skill"], other["r2"])
    skill, r2 = ([record[name] for record in by_skill.history] for name in ("skill", "r2"))
    assert skill == sorted(skill)
    assert r2.index(max(r2)) == 0
    assert max(r2) < -1e12
    assert by_skill.best["epoch"] == 4
    assert by_r2.best["epoch"] == 1
    for fitted, name in ((by_skill, "skill"), (by_r2, "r2")):
        assert [record["score"] for record in fitted.history] == [record[name] for record in fitted.history]
    assert not torch.equal(by_skill.weights["1.bias"], by_r2.weights["1.bias"])


def test_the_silent_column_is_counted_and_left_out_of_the_mean_over_those_that_vary():
    record = history().best
    assert record["r2_silent"] == 1
    assert record["r2_below_zero"] >= 1
    assert record["r2_varying"] > 0 > -1e12 > record["r2"]
    # nothing is to be gained there
    assert record["attainable"] == pytest.approx(attainable_by_hand(), abs=1e-6)
    assert record["skill_by_variable"] != record["r2_by_variable"]


def attainable_by_hand():
    truth = np.concatenate([part["targets"] for part in WithSilentColumn().validation])[:, LEARNED].astype(np.float64)
    return ((truth**2).mean(axis=0) / np.maximum(truth.var(axis=0), 1)).mean()


@pytest.mark.parametrize(("select", "epochs"), [("skill", [1, 2, 3, 4]), ("r2", [1, 2])])
def test_patience_waits_for_the_score_that_chooses(select, epochs):
    assert [record["epoch"] for record in history(select=select, patience=1).history] == epochs


@pytest.mark.parametrize(("select", "rates"), [("skill", [1e-2] * 4), ("r2", [1e-2, 1e-2, 5e-3, 2.5e-3])])
def test_a_plateau_is_one_of_the_score_that_chooses(select, rates):
    plateau = {"name": "plateau", "options": {"patience": 0, "factor": 0.5}}
    assert [record["lr"] for record in history(select=select, schedule=plateau).history] == rates


class Departing(Batches):
    """Raw rows of which a water column is nearly always lost, scaled as data is prepared."""

    COLUMN = "ptend_q0002_27"

    def __init__(self):
        super().__init__()
        raw = {name: self._raw(count, seed) for name, count, seed in (("train", 8 * 32, 1), ("validation", 40, 2))}
        fitting = Fitting(KAGGLE, Choice(name="standard"), ())
        self.transform = fitting.fit(Moments.of(fitting.columns(*raw["train"])), {})
        self.raw = raw
        train, validation = (self._scaled(*rows) for rows in raw.values())
        self.training = [{name: values[start : start + 32] for name, values in train.items()} for start in range(0, 8 * 32, 32)]
        self.validation = [{name: values[part] for name, values in validation.items()} for part in (slice(0, 27), slice(27, 40))]

    def _raw(self, count, seed):
        rows = random_rows(count, seed)
        x, y = rows[:, : INPUTS.width], rows[:, INPUTS.width :]
        lost = x[:, INPUTS.columns.index(self.COLUMN.replace("ptend", "state"))] / 1200
        # all but a sixth of the rows lose all
        y[:, TARGETS.columns.index(self.COLUMN)] = -lost * np.where(np.arange(count) % 6, 1.0, 0.8)
        return x, y

    def _scaled(self, x, y):
        x, y = torch.from_numpy(x), torch.from_numpy(y)
        inputs, targets = (values.numpy() for values in (self.transform.scale_inputs(x), self.transform.scale_targets(y, x)))
        return {"inputs": inputs, "targets": targets, "row": np.arange(len(inputs)), "source": np.zeros(len(inputs), np.int16)}


def test_scores_of_departures_are_those_of_the_physical_columns():
    batches = Departing()
    fitted = fit(Loop(linear(), batches, training(epochs=2), CPU))
    (train_x, train_y), (x, y) = batches.raw.values()
    network = linear()
    network.load_state_dict(fitted.weights)
    with torch.no_grad():
        z = network.eval()(torch.from_numpy(np.concatenate([part["inputs"] for part in batches.validation]))).double().numpy()
    assert Departing.COLUMN in batches.transform.departures
    prediction = np.empty_like(z)
    for place, column in enumerate(TARGETS.columns):
        lost = [np.zeros(len(rows)) for rows in (train_x, x)]
        if column in batches.transform.departures:
            lost = [rows[:, INPUTS.columns.index(column.replace("ptend", "state"))] / 1200 for rows in (train_x, x)]
        learned = train_y[:, place] + lost[0]
        prediction[:, place] = z[:, place] * learned.std() + learned.mean() - lost[1]
    error = ((prediction - y) ** 2).mean(axis=0)
    of_mean = ((y - train_y.mean(axis=0)) ** 2).mean(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        skill = np.maximum((of_mean - error) / np.maximum(y.var(axis=0), train_y.var(axis=0)), -1)[LEARNED]
        r2 = (1 - error / y.var(axis=0))[LEARNED]
    record = fitted.best
    assert record["skill"] == pytest.approx(skill.mean(), abs=1e-6)
    assert record["r2"] == pytest.approx(r2.mean(), abs=1e-6)
    # the loss is told by the state: no network could say it as well
    assert skill[np.flatnonzero(LEARNED).tolist().index(TARGETS.columns.index(Departing.COLUMN))] > 0.5
