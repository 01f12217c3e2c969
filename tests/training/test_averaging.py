import copy

import numpy as np
import pytest
import torch
from torch import nn

from leapray import recipe
from leapray.training import checkpoint
from leapray.training.averaging import MovingAverage

EVERY, AFTER, DECAY, STEPS = 3, 7, 0.8, 40


class Network(nn.Module):
    """Weights, a recurrent layer, and buffers of floats and integers."""

    def __init__(self):
        super().__init__()
        self.recurrent = nn.LSTM(2, 3, bidirectional=True)
        self.norm = nn.BatchNorm1d(4)

    def randomise(self, generator):
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
            self.norm.running_mean.normal_(generator=generator)
            self.norm.num_batches_tracked += 1


def settings(ramp):
    return recipe.MovingAverage(decay=DECAY, every=EVERY, after=AFTER, ramp=ramp)


def weights(network):
    return {name: parameter.detach().double().numpy().copy() for name, parameter in network.named_parameters()}


def train(network, average, first, last):
    """Random weights at every step; those of each step, with the average after it."""
    history = []
    for step in range(first, last + 1):
        network.randomise(torch.Generator().manual_seed(step))
        average.step_ended(step)
        history.append((weights(network), weights(average.network)))
    return history


def by_definition(start, history, ramp):
    """The averages after every step, as ema-pytorch 0.5 makes them: it counts the updates that were asked for before this one."""
    average, begun = start, False
    for count, (current, _) in enumerate(history):
        if count % EVERY == 0:
            if count <= AFTER or not begun:
                average, begun = current, count > AFTER
            else:
                decay = min(DECAY, 1 - (1 + count - AFTER) ** (-2 / 3)) if ramp else DECAY
                average = {name: decay * average[name] + (1 - decay) * current[name] for name in current}
        yield average


@pytest.mark.parametrize("ramp", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_equals_its_definition_after_every_step(ramp, seed):
    torch.manual_seed(seed)
    network = Network()
    start = weights(network)
    history = train(network, MovingAverage(network, settings(ramp)), 1, STEPS)
    for (_, found), expected in zip(history, by_definition(start, history, ramp), strict=True):
        for name in expected:
            np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=2e-6)


def test_is_a_copy_until_it_begins():
    network = Network()
    history = train(network, MovingAverage(network, settings(ramp=True)), 1, 13)
    # the library's counts 0, 3, 6, and 9, the first beyond 7: steps 1, 4, 7 and 10; the next, step 13, averages
    taken = [step for step, (current, found) in enumerate(history, 1) if all(np.array_equal(current[name], found[name]) for name in found)]
    assert taken == [1, 4, 7, 10]
    assert not np.array_equal(history[12][1]["norm.weight"], history[9][1]["norm.weight"])


def test_the_originals_ramp_reaches_its_decay_near_step_1050():
    network = nn.Linear(1, 1, bias=False)
    average = MovingAverage(network, recipe.MovingAverage(ramp=True))
    network.weight.data.fill_(1.0)
    taken = {}
    for step in range(1, 1200):
        # from an average of zero an update takes (1 - decay) of the weight
        average.network.weight.data.fill_(0.0)
        average.step_ended(step)
        if average.network.weight.item():
            taken[step] = average.network.weight.item()
    assert list(taken) == list(range(1, 1200, 8))
    assert next(step for step, weight in taken.items() if weight < 0.01001) == 1049


def test_buffers_are_those_of_the_network_at_the_last_update():
    network = Network()
    average = MovingAverage(network, settings(ramp=False))
    train(network, average, 1, 3 * EVERY + 1)
    torch.testing.assert_close(dict(average.network.named_buffers()), dict(network.named_buffers()), rtol=0, atol=0)
    assert average.network.norm.num_batches_tracked.dtype == torch.int64


def test_the_network_in_training_is_left_alone():
    network = Network()
    average = MovingAverage(network, settings(ramp=False))
    train(network, average, 1, STEPS - 1)
    network.randomise(torch.Generator().manual_seed(STEPS))
    before = copy.deepcopy(network.state_dict())
    average.step_ended(STEPS)
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert not any(parameter.requires_grad for parameter in average.network.parameters())


@pytest.mark.parametrize("stop", [2, AFTER, 10, 11, 20])
def test_a_saved_average_continues_in_a_fresh_one_as_if_never_stopped(tmp_path, stop):
    network = Network()
    undisturbed = train(network, MovingAverage(network, settings(ramp=True)), 1, STEPS)
    network = Network()
    average = MovingAverage(network, settings(ramp=True))
    train(network, average, 1, stop)
    checkpoint.save(str(tmp_path / "saved"), average.state_dict())
    network = Network()
    average = MovingAverage(network, settings(ramp=True))
    average.load_state_dict(checkpoint.load(str(tmp_path / "saved")))
    resumed = train(network, average, stop + 1, STEPS)
    for (_, found), (_, expected) in zip(resumed, undisturbed[stop:], strict=True):
        for name in expected:
            np.testing.assert_array_equal(found[name], expected[name])
