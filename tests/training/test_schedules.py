import math

import numpy as np
import pytest
import torch
from torch.optim.swa_utils import SWALR

from leapray.errors import UserError
from leapray.recipe import Choice, EqualAverage
from leapray.training import checkpoint
from leapray.training.schedules import SCHEDULES, AveragingRate

STEPS = 5
CHOICES = [
    Choice(name="constant"),
    Choice(name="multistep", options={"milestones": [1, 3], "gamma": 0.5}),
    Choice(name="plateau", options={"patience": 1}),
    Choice(name="cosine", options={"warmup": 0.7, "final": 0.1}),
]


def build(choice, epochs, lr=1.0):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    return optimizer, SCHEDULES.build(choice, optimizer, STEPS, epochs)


def run(optimizer, schedule, scores):
    """The rate of every step of as many epochs as there are validations."""
    rates = []
    for score in scores:
        for _ in range(STEPS):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step_ended()
        schedule.epoch_ended()
        schedule.validated(score)
    return rates


def by_epoch(choice, scores, lr=1.0):
    rates = np.reshape(run(*build(choice, len(scores), lr), scores), (-1, STEPS))
    assert (rates == rates[:, :1]).all()
    return rates[:, 0].tolist()


def test_constant_never_changes():
    assert by_epoch(Choice(name="constant"), [0.0] * 8, lr=0.3) == [0.3] * 8


def test_multistep_falls_after_each_milestone():
    assert by_epoch(CHOICES[1], [0.0] * 5) == pytest.approx([1, 0.5, 0.5, 0.25, 0.25])


def test_plateau_falls_when_patience_is_over_and_higher_is_better():
    assert by_epoch(Choice(name="plateau"), [-3.0, -2.0] + [-2.5] * 7 + [0.5, 0.5]) == pytest.approx([1] * 9 + [10**-0.2] * 2)


def test_plateau_counts_a_gain_above_the_threshold_only():
    options = {"factor": 0.5, "patience": 0, "threshold": 0.1, "min_lr": 0.3}
    # better by 0.05, by 0.25, by nothing, and a NaN
    assert by_epoch(Choice(name="plateau", options=options), [0.0, 0.05, 0.3, 0.3, math.nan, 0.3]) == [1, 1, 0.5, 0.5, 0.3, 0.3]


def test_plateau_counts_validations_whatever_their_number_in_an_epoch():
    optimizer, schedule = build(Choice(name="plateau", options={"factor": 0.5, "patience": 1}), 9)
    schedule.epoch_ended()
    for scores in [0.5, 0.4, 0.4]:
        schedule.validated(scores)
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_cosine_rises_in_steps_and_ends_with_the_last_step():
    epochs, rising, final, lr = 4, 8, 0.1, 0.3
    choice = Choice(name="cosine", options={"warmup": rising / STEPS, "final": final})
    rates = np.array(run(*build(choice, epochs, lr), [0.0] * epochs)) / lr
    np.testing.assert_allclose(rates[:rising], np.arange(1, rising + 1) / (rising + 1), rtol=1e-12)
    progress = np.linspace(0, 1, epochs * STEPS - rising)
    np.testing.assert_allclose(rates[rising:], final + (1 - final) * 0.5 * (1 + np.cos(np.pi * progress)), rtol=1e-12)


def test_cosine_without_a_rise_goes_from_the_full_rate_to_zero():
    rates = run(*build(Choice(name="cosine"), 3), [0.0] * 3)
    assert rates[0] == 1
    assert rates[-1] == pytest.approx(0, abs=1e-15)
    assert np.all(np.diff(rates) < 0)


def test_cosine_takes_the_shortest_training():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1)
    SCHEDULES.build(Choice(name="cosine"), optimizer, 1, 1)
    assert optimizer.param_groups[0]["lr"] == 1


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: choice.name)
@pytest.mark.parametrize("epochs", [1, 3])
def test_a_saved_schedule_continues_in_a_fresh_one_as_if_never_stopped(tmp_path, choice, epochs):
    scores = [0.1, 0.3, 0.2, 0.2, 0.1, 0.1]
    undisturbed = run(*build(choice, len(scores)), scores)
    optimizer, schedule = build(choice, len(scores))
    run(optimizer, schedule, scores[:epochs])
    checkpoint.save(str(tmp_path / "saved"), {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()})
    optimizer, schedule = build(choice, len(scores))
    state = checkpoint.load(str(tmp_path / "saved"))
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    assert run(optimizer, schedule, scores[epochs:]) == undisturbed[epochs * STEPS :]


def test_a_cosine_saved_inside_its_rise_continues(tmp_path):
    choice = Choice(name="cosine", options={"warmup": 2})
    undisturbed = run(*build(choice, 4), [0.0] * 4)
    optimizer, schedule = build(choice, 4)
    for _ in range(3):
        optimizer.step()
        schedule.step_ended()
    checkpoint.save(str(tmp_path / "saved"), {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()})
    optimizer, schedule = build(choice, 4)
    state = checkpoint.load(str(tmp_path / "saved"))
    schedule.load_state_dict(state["schedule"])
    optimizer.load_state_dict(state["optimizer"])
    assert run(optimizer, schedule, [0.0] * 3) == undisturbed[3 : 3 + 3 * STEPS]


def averaging(choice, epochs, settings, lr=0.3):
    """An optimizer of two groups with rates of their own, and its schedule."""
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in (lr, lr / 10)]
    optimizer = torch.optim.SGD(groups)
    return optimizer, AveragingRate(SCHEDULES.build(choice, optimizer, STEPS, epochs), optimizer, settings)


def by_torch(choice, epochs, settings, lr=0.3):
    """The first group's rate in every step: the schedule until averaging begins, and from then on torch's ``SWALR``."""
    optimizer, _ = averaging(choice, epochs, EqualAverage(start=epochs + 1), lr)
    before = SCHEDULES.build(choice, optimizer, STEPS, epochs)
    rates, annealing = [], None
    for epoch in range(1, epochs + 1):
        if epoch == settings.start:
            annealing = SWALR(optimizer, swa_lr=settings.lr, anneal_epochs=settings.anneal, anneal_strategy="cos")
        for _ in range(STEPS):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            if annealing is None:
                before.step_ended()
        if annealing is None:
            before.epoch_ended()
        else:
            annealing.step()
    return rates


@pytest.mark.parametrize("anneal", [0, 1, 4])
@pytest.mark.parametrize("start", [1, 3, 6])
@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: choice.name)
def test_the_rate_of_weight_averaging_is_that_of_torch(choice, start, anneal):
    settings, epochs = EqualAverage(start=start, lr=1e-3, anneal=anneal), 9
    found = run(*averaging(choice, epochs, settings), np.linspace(0, 1, epochs))
    np.testing.assert_allclose(found, by_torch(choice, epochs, settings), rtol=1e-9, atol=1e-15)
    last = min(start - 1 + anneal, epochs) * STEPS
    assert found[last:] == pytest.approx([1e-3] * (epochs * STEPS - last), rel=1e-12)


def test_the_rate_of_weight_averaging_rises_too_and_that_of_every_group():
    settings = EqualAverage(start=2, lr=1.0, anneal=4)
    optimizer, schedule = averaging(CHOICES[0], 9, settings, lr=0.1)
    run(optimizer, schedule, [0.0] * 3)
    # two epochs of averaging are over, half of the way
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([(0.1 + 1) / 2, (0.01 + 1) / 2])


def test_a_plateau_no_longer_counts_once_averaging_has_begun():
    choice = Choice(name="plateau", options={"patience": 0, "factor": 0.5})
    rates = np.reshape(run(*averaging(choice, 9, EqualAverage(start=4, lr=0.01, anneal=2)), [0.5] + [0.1] * 8), (-1, STEPS))[:, 0]
    # the validation at the end of the third epoch comes when the fourth one's rate is set
    assert rates == pytest.approx([0.3, 0.3, 0.15, 0.15, (0.15 + 0.01) / 2] + [0.01] * 4)


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: choice.name)
@pytest.mark.parametrize("start", [1, 4])
@pytest.mark.parametrize("epochs", range(7))
def test_a_saved_rate_of_weight_averaging_continues_in_a_fresh_one(tmp_path, choice, start, epochs):
    settings, scores = EqualAverage(start=start, lr=1e-3, anneal=2), [0.1, 0.3, 0.2, 0.2, 0.1, 0.1, 0.1]
    undisturbed = run(*averaging(choice, len(scores), settings), scores)
    optimizer, schedule = averaging(choice, len(scores), settings)
    run(optimizer, schedule, scores[:epochs])
    checkpoint.save(str(tmp_path / "saved"), {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()})
    optimizer, schedule = averaging(choice, len(scores), settings)
    state = checkpoint.load(str(tmp_path / "saved"))
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    assert run(optimizer, schedule, scores[epochs:]) == undisturbed[epochs * STEPS :]


@pytest.mark.parametrize("options", [{}, {"milestones": []}, {"milestones": [3, 1]}, {"milestones": [2, 2]}, {"milestones": [0]}])
def test_multistep_refuses_useless_milestones(options):
    with pytest.raises(UserError, match=r"training\.schedule\.options.*milestones"):
        build(Choice(name="multistep", options=options), 3)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cosine", {"warmup": 3}, "warmup is 3 epochs.*fewer than training.epochs, 3"),
        ("cosine", {"warmup": -1}, "warmup"),
        ("cosine", {"final": 1.5}, "final"),
        ("plateau", {"factor": 1}, "factor"),
        ("plateau", {"patience": -1}, "patience"),
        ("constant", {"gamma": 1}, "gamma"),
        ("step", {}, "'step'.*constant, multistep, plateau, cosine"),
    ],
)
def test_names_what_is_wrong(name, options, message):
    with pytest.raises(UserError, match=message):
        build(Choice(name=name, options=options), 3)
