import copy
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest
import torch
from sklearn.metrics import r2_score

from leapray.climsim.schema import INPUTS, LEARNED, SCORED, TARGETS
from leapray.errors import UserError
from leapray.recipe import Choice, Training
from leapray.training.loop import Loop, Peers

CPU = torch.device("cpu")


class Batches:
    """Rows of a linear map in memory, ``world`` ranks taking turns; the arrays are read-only, as Ray Data gives them."""

    def __init__(self, steps=8, batch=32, validation=(20, 7, 13), rank=0, world=1, good_epochs=99):
        generator = np.random.default_rng(5)
        matrix = generator.normal(size=(INPUTS.width, TARGETS.width)) / INPUTS.width**0.5

        def rows(count):
            inputs = generator.normal(size=(count, INPUTS.width)).astype(np.float32)
            targets = (inputs @ matrix).astype(np.float32)
            inputs.flags.writeable = targets.flags.writeable = False
            return {"inputs": inputs, "targets": targets, "row": np.arange(count)}

        self.steps = steps
        self.good_epochs = good_epochs
        self.part = slice(rank * (batch // world), (rank + 1) * (batch // world))
        self.training = [rows(batch) for _ in range(steps)]
        self.validation_rows = sum(validation)
        self.validation = [rows(count) for count in validation][rank::world]

    def train(self, epoch, first_step=0):
        order = np.random.default_rng(epoch).permutation(self.steps)
        for index in order[first_step:]:
            batch = {key: values[self.part] for key, values in self.training[index].items()}
            yield batch if epoch < self.good_epochs else batch | {"targets": -batch["targets"]}

    def validate(self):
        yield from self.validation


def training(**changes):
    options = {"lr": 1e-2, "weight_decay": 0.0}
    settings = {"run": "unused", "epochs": 3, "batch_size": 32, "optimizer": {"name": "adamw", "options": options}} | changes
    return Training.model_validate(settings)


def linear(dropout=0.0):
    torch.manual_seed(3)
    return torch.nn.Sequential(torch.nn.Dropout(dropout), torch.nn.Linear(INPUTS.width, TARGETS.width))


def fit(loop, records=None):
    return loop.fit(lambda record: None if records is None else records.append(record))


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def predictions(weights, batches):
    network = linear()
    network.load_state_dict(weights)
    rows = list(batches.validate())
    with torch.no_grad():
        found = network.eval()(torch.tensor(np.concatenate([batch["inputs"] for batch in rows]))).numpy()
    return np.concatenate([batch["targets"] for batch in rows]), found


def test_learns_a_linear_map():
    batches = Batches(steps=24, batch=128, validation=(200,))
    fitted = fit(Loop(linear(), batches, training(epochs=12, batch_size=128), CPU))
    assert fitted.best["r2"] > 0.9
    assert fitted.history[-1]["loss"] < fitted.history[0]["loss"] / 4


def test_validation_is_scored_over_the_whole_set_as_scikit_learn_does():
    batches = Batches()
    fitted = fit(Loop(linear(), batches, training(epochs=1), CPU))
    truth, prediction = predictions(fitted.weights, batches)
    r2 = r2_score(truth, prediction, multioutput="raw_values")[LEARNED]
    record = fitted.best
    assert record["r2"] == pytest.approx(r2.mean(), abs=1e-6)
    assert record["r2_scored"] == pytest.approx((r2.sum() + 15) / SCORED.sum(), abs=1e-6)
    assert record["leaderboard"] == pytest.approx((r2.sum() + 75) / TARGETS.width, abs=1e-6)
    error = np.abs(truth - prediction)[:, LEARNED].astype(np.float64)
    assert record["val_loss"] == pytest.approx(np.where(error < 1, error**2 / 2, error - 0.5).mean(), rel=1e-5)
    assert record["val_rows"] == len(truth) == 40


def test_ranks_merge_their_moments_and_losses():
    # with a rate too small to change any weight, two ranks need no exchange of gradients
    still = training(epochs=1, optimizer={"name": "adamw", "options": {"lr": 1e-30, "weight_decay": 0.0}})
    whole = fit(Loop(linear(), Batches(), still, CPU)).best
    arrays, together = [None, None], Barrier(2, timeout=30)

    def rank_loop(rank):
        def gather(array):
            arrays[rank] = array
            together.wait()
            gathered = list(arrays)
            together.wait()
            return gathered

        return Loop(linear(), Batches(rank=rank, world=2), still, CPU, Peers(rank, gather))

    with ThreadPoolExecutor(2) as pool:
        ranks = [fitted.best for fitted in pool.map(fit, [rank_loop(0), rank_loop(1)])]
    for key in ("loss", "loss_curve", "val_loss", "r2", "leaderboard", "val_rows"):
        assert ranks[0][key] == ranks[1][key] == pytest.approx(whole[key], rel=1e-6), key


def test_the_best_weights_are_kept_as_they_were():
    kept = []
    loop = Loop(linear(), Batches(good_epochs=3), training(epochs=5), CPU)
    fitted = loop.fit(lambda record: kept.append(copy.deepcopy(loop.bare.state_dict())))
    assert np.argmax([record["r2"] for record in fitted.history]) == 2
    assert fitted.best["epoch"] == 3
    assert same(fitted.weights, kept[2])
    assert not same(fitted.weights, kept[4])


def test_stops_after_patience_validations_without_a_better_one():
    fitted = fit(Loop(linear(), Batches(good_epochs=3), training(epochs=50, patience=2), CPU))
    assert [record["epoch"] for record in fitted.history] == [1, 2, 3, 4, 5]
    assert fitted.best["epoch"] == 3


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_resuming_after_any_epoch_equals_an_undisturbed_run(dropout, precision):
    schedule = {"name": "multistep", "options": {"milestones": [1, 3], "gamma": 0.5}}
    settings = training(epochs=4, schedule=schedule, precision=precision)
    states = []
    loop = Loop(linear(dropout), Batches(), settings, CPU)
    whole = loop.fit(lambda record: states.append(copy.deepcopy(loop.state())))
    for state in states:
        torch.manual_seed(999)
        resumed = Loop(linear(dropout), Batches(), settings, CPU)
        resumed.restore(state)
        fitted = fit(resumed)
        assert same(fitted.weights, whole.weights)
        assert same(resumed.bare.state_dict(), loop.bare.state_dict())
        timeless = [
            [{k: v for k, v in r.items() if k not in ("rows_per_s", "data_wait_s")} for r in run.history] for run in (fitted, whole)
        ]
        assert timeless[0] == timeless[1]


def test_dropout_differs_between_ranks_and_epochs():
    losses = {}
    for rank in (0, 1):
        still = training(epochs=2, optimizer={"name": "adamw", "options": {"lr": 1e-30, "weight_decay": 0.0}})
        batches = Batches(steps=1)
        losses[rank] = [record["loss"] for record in fit(Loop(linear(0.5), batches, still, CPU, Peers(rank))).history]
    assert len({*losses[0], *losses[1]}) == 4


def test_the_loss_curve_has_every_step_of_a_short_epoch_and_a_mean_of_each_part_of_a_long_one():
    short = fit(Loop(linear(), Batches(steps=7), training(epochs=1), CPU)).best
    assert len(short["loss_curve"]) == 7
    assert np.mean(short["loss_curve"]) == pytest.approx(short["loss"], rel=1e-12)
    long = fit(Loop(linear(), Batches(steps=205, batch=2), training(epochs=1, batch_size=2), CPU)).best
    assert len(long["loss_curve"]) == 100


def test_logs_where_it_stands():
    logged = []
    loop = Loop(linear(), Batches(steps=5), training(epochs=2), CPU)
    fitted = loop.fit(lambda record: None, logged.append, log_seconds=0)
    assert [record["step"] for record in logged] == list(range(1, 11))
    assert [record["epoch"] for record in logged] == [1] * 5 + [2] * 5
    assert {record["steps"] for record in logged} == {10}
    assert [record["loss"] for record in logged[:5]] == fitted.history[0]["loss_curve"]
    assert all(record["rows_per_s"] > 0 for record in logged)


def test_lost_or_doubled_validation_rows_are_an_error():
    for change, arrived in ((lambda parts: parts[1:], 20), (lambda parts: [*parts, parts[0]], 60)):
        batches = Batches()
        batches.validation = change(batches.validation)
        with pytest.raises(RuntimeError, match=f"epoch 1: {arrived} validation rows arrived of 40"):
            fit(Loop(linear(), batches, training(), CPU))


def test_names_epoch_and_step_of_a_loss_that_is_not_finite():
    batches = Batches(steps=4)
    poisoned = batches.training[int(np.random.default_rng(1).permutation(4)[2])]
    # the first epoch passes over the poisoned batch, which comes third in the second one
    poisoned["targets"] = np.full_like(poisoned["targets"], np.nan)
    batches.train = lambda epoch, train=batches.train: train(1) if epoch == 1 else iter(list(train(1))[:2] * 2)
    with pytest.raises(UserError, match="nan at epoch 2, step 3 of 4"):
        fit(Loop(linear(), batches, training(), CPU))


def test_takes_wrong_choices_as_the_users_mistake():
    with pytest.raises(UserError, match=r"training\.optimizer.*'sgd'.*adamw"):
        Loop(linear(), Batches(), training(optimizer=Choice(name="sgd")), CPU)
