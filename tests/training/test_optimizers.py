import pytest
import torch

from leapray.errors import UserError
from leapray.recipe import Choice
from leapray.training import checkpoint
from leapray.training.optimizers import OPTIMIZERS


def build(parameters, **options):
    return OPTIMIZERS.build(Choice(name="adamw", options=options), parameters)


def step(optimizer, parameters, seeds):
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        optimizer.step()


def some_parameters(dtype=torch.float32):
    generator = torch.Generator().manual_seed(9)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for shape in [(7, 5), (3,)]]


def test_adamw_steps_as_its_paper_says():
    lr, decay, beta1, beta2, eps = 0.1, 0.2, 0.8, 0.95, 1e-8
    parameters = some_parameters(torch.float64)
    expected = [parameter.detach().clone() for parameter in parameters]
    first, second = ([torch.zeros_like(value) for value in expected] for _ in range(2))
    optimizer = build(parameters, lr=lr, weight_decay=decay, betas=[beta1, beta2])
    for count in range(1, 5):
        step(optimizer, parameters, [count])
        for index, parameter in enumerate(parameters):
            gradient = parameter.grad
            first[index] = beta1 * first[index] + (1 - beta1) * gradient
            second[index] = beta2 * second[index] + (1 - beta2) * gradient**2
            corrected = (second[index] / (1 - beta2**count)).sqrt() + eps
            # the decay is decoupled, and biases have it too
            expected[index] = expected[index] * (1 - lr * decay) - lr * first[index] / (1 - beta1**count) / corrected
    for parameter, value in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.detach(), value, rtol=1e-12, atol=1e-14)


def test_a_frozen_parameter_is_left_out():
    frozen, trained = some_parameters()
    frozen.requires_grad_(False)
    before = frozen.clone()
    optimizer = build(iter([frozen, trained]), weight_decay=0.5)
    step(optimizer, [trained], range(2))
    assert torch.equal(frozen, before)
    assert optimizer.param_groups[0]["params"] == [trained]


def test_a_saved_optimizer_continues_in_a_fresh_one_as_if_never_stopped(tmp_path):
    undisturbed, parameters = some_parameters(), some_parameters()
    step(build(undisturbed), undisturbed, range(6))
    optimizer = build(parameters)
    step(optimizer, parameters, range(3))
    checkpoint.save(str(tmp_path / "saved"), optimizer.state_dict())
    optimizer = build(parameters)
    optimizer.load_state_dict(checkpoint.load(str(tmp_path / "saved")))
    step(optimizer, parameters, range(3, 6))
    assert all(torch.equal(found, expected) for found, expected in zip(parameters, undisturbed, strict=True))


@pytest.mark.parametrize(("key", "value"), [("lr", 0), ("weight_decay", -1), ("betas", [0.9, 1.0]), ("momentum", 0.9)])
def test_adamw_refuses_a_wrong_option_by_its_key(key, value):
    with pytest.raises(UserError, match=key):
        build([torch.nn.Parameter(torch.zeros(1))], **{key: value})
