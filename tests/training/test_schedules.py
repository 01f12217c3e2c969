import pytest
import torch

from leapray.errors import UserError
from leapray.recipe import Choice
from leapray.training.optimizers import OPTIMIZERS
from leapray.training.schedules import SCHEDULES


def rates(choice, epochs, lr=1.0):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    schedule = SCHEDULES.build(choice, optimizer)
    found = []
    for _ in range(epochs):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_constant_never_changes():
    assert rates(Choice(name="constant"), 8, lr=0.3) == [0.3] * 8


def test_multistep_falls_after_each_milestone():
    choice = Choice(name="multistep", options={"milestones": [1, 3], "gamma": 0.5})
    assert rates(choice, 5) == pytest.approx([1, 0.5, 0.5, 0.25, 0.25])


@pytest.mark.parametrize("options", [{}, {"milestones": []}, {"milestones": [3, 1]}, {"milestones": [2, 2]}, {"milestones": [0]}])
def test_multistep_refuses_useless_milestones(options):
    with pytest.raises(UserError, match=r"training\.schedule\.options.*milestones"):
        SCHEDULES.build(Choice(name="multistep", options=options), None)


def test_adamw_takes_one_step_as_its_paper_says():
    start, gradient, lr, decay, beta1, beta2, eps = 2.0, 0.5, 0.1, 0.2, 0.8, 0.95, 1e-8
    parameter = torch.nn.Parameter(torch.tensor([start], dtype=torch.float64))
    options = {"lr": lr, "weight_decay": decay, "betas": [beta1, beta2]}
    optimizer = OPTIMIZERS.build(Choice(name="adamw", options=options), [parameter])
    parameter.grad = torch.tensor([gradient], dtype=torch.float64)
    optimizer.step()
    # after one step both bias-corrected moments are the gradient's own
    assert parameter.item() == pytest.approx(start * (1 - lr * decay) - lr * gradient / (abs(gradient) + eps), rel=1e-12)


@pytest.mark.parametrize(("key", "value"), [("lr", 0), ("weight_decay", -1), ("betas", [0.9, 1.0]), ("momentum", 0.9)])
def test_adamw_refuses_a_wrong_option_by_its_key(key, value):
    with pytest.raises(UserError, match=key):
        OPTIMIZERS.build(Choice(name="adamw", options={key: value}), [torch.nn.Parameter(torch.zeros(1))])
