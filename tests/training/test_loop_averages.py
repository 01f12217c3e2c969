"""Averages of weights in the training loop: over the ends of epochs, and from given weights on."""

import copy

import numpy as np
import pytest
import torch
from sklearn.metrics import r2_score

from leapray.training.loop import Loop
from tests.columns import LEARNED
from tests.training.test_loop import CPU, Batches, fit, linear, normed, predictions, same, training

SWA = {"start": 3, "lr": 1e-3, "anneal": 2}


def fit_watched(loop):
    """What came of a training, and the weights of the network at the end of every epoch."""
    ends = []

    def watch(record):
        if record["event"] == "step" and loop.done % loop.batches.steps == 0:
            ends.append(copy.deepcopy(loop.bare.state_dict()))

    return loop.fit(watch), ends


def mean(states):
    return {name: torch.stack([state[name].double() for state in states]).mean(dim=0).float() for name in states[0]}


def r2_of(weights, batches):
    truth, prediction = predictions(weights, batches)
    return r2_score(truth, prediction, multioutput="raw_values")[LEARNED].mean()


def test_an_average_over_epochs_is_the_mean_of_their_last_weights_and_what_is_saved():
    fitted, ends = fit_watched(Loop(linear(), Batches(), training(epochs=6, swa=SWA), CPU))
    expected = mean(ends[2:])
    assert fitted.weights.keys() == expected.keys()
    torch.testing.assert_close(fitted.weights, expected, rtol=0, atol=1e-6)
    assert fitted.best is fitted.history[-1]
    assert [record.get("averaged") for record in fitted.history] == [None, None, 1, 2, 3, 4]


def test_an_average_over_epochs_is_validated_from_its_beginning_on_and_the_network_before():
    batches = Batches()
    fitted, ends = fit_watched(Loop(linear(), batches, training(epochs=5, swa=SWA, validations=2), CPU))
    at_ends = [record["r2"] for record in fitted.history if record["step"] % batches.steps == 0]
    evaluated = [ends[0], ends[1], ends[2], mean(ends[2:4]), mean(ends[2:5])]
    assert at_ends == pytest.approx([r2_of(weights, batches) for weights in evaluated], abs=1e-6)
    # inside an epoch the average is that of the ends before
    inside = {record["epoch"]: record for record in fitted.history if record["step"] % batches.steps}
    assert [inside[epoch].get("averaged") for epoch in range(1, 6)] == [None, None, None, 1, 2]
    assert inside[4]["r2"] == at_ends[2]
    assert inside[5]["r2"] == at_ends[3]


def test_an_average_over_epochs_does_not_end_by_patience_and_is_the_model_though_it_be_worse():
    # targets turn round after the second epoch
    fitted, ends = fit_watched(Loop(linear(), Batches(good_epochs=2), training(epochs=7, swa=SWA, patience=1), CPU))
    assert [record["epoch"] for record in fitted.history] == list(range(1, 8))
    assert max(fitted.history, key=lambda record: record["r2"])["epoch"] < 7
    torch.testing.assert_close(fitted.weights, mean(ends[2:]), rtol=0, atol=1e-6)


def test_the_rate_of_an_average_over_epochs_is_what_its_epochs_train_with():
    rates = {}
    loop = Loop(linear(), Batches(), training(epochs=6, swa=SWA), CPU)
    loop.optimizer.register_step_pre_hook(lambda *_: rates.setdefault(loop.done // 8 + 1, set()).add(loop.optimizer.param_groups[0]["lr"]))
    fit(loop)
    assert [len(found) for found in rates.values()] == [1] * 6
    assert [found.pop() for found in rates.values()] == pytest.approx([1e-2] * 3 + [(1e-2 + 1e-3) / 2] + [1e-3] * 2)


def test_an_average_over_epochs_has_batch_statistics_of_its_own():
    batches = Batches()
    loop = Loop(normed(), batches, training(epochs=4, swa=SWA), CPU)
    fitted, ends = fit_watched(loop)
    weights = mean(ends[2:])
    rows = [batch["inputs"].astype(np.float64) for batch in batches.train(0)]
    outputs = [x @ weights["0.weight"].double().numpy().T + weights["0.bias"].double().numpy() for x in rows]
    np.testing.assert_allclose(fitted.weights["1.running_mean"], np.mean([y.mean(axis=0) for y in outputs], axis=0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(fitted.weights["1.running_var"], np.mean([y.var(axis=0, ddof=1) for y in outputs], axis=0), rtol=1e-4)
    assert not torch.allclose(fitted.weights["1.running_var"], loop.bare[1].running_var)


@pytest.mark.parametrize("average", [{}, {"ema": {"decay": 0.9, "every": 3, "after": 0}}, {"swa": SWA}], ids=["none", "ema", "swa"])
def test_a_training_begins_with_the_weights_that_it_is_given(average):
    weights = {name: torch.full_like(tensor, 0.25) for name, tensor in linear().state_dict().items()}
    still = {"name": "adamw", "options": {"lr": 1e-30, "weight_decay": 0.0}}
    loop = Loop(linear(), Batches(), training(**{"epochs": 3, "optimizer": still} | average), CPU)
    loop.begin_with(weights)
    assert same(loop.evaluated.state_dict(), weights)
    # they are copied
    loop.bare[1].weight.data.fill_(0.25)
    fitted = fit(loop)
    assert same(fitted.weights, weights)
