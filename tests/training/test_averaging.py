import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from leapray import recipe
from leapray.training import checkpoint
from leapray.training.averaging import EpochMean, MovingAverage, recompute_batch_norm

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


START, EPOCHS = 3, 12


def train_epochs(network, average, first, last):
    """Random weights at the end of every epoch; those of each, with the average after it."""
    history = []
    for epoch in range(first, last + 1):
        network.randomise(torch.Generator().manual_seed(epoch))
        average.step_ended(epoch)
        average.epoch_ended(epoch)
        history.append((weights(network), weights(average.network)))
    return history


def test_the_mean_over_epochs_is_the_plain_mean_of_their_weights_and_torchs():
    network = Network()
    average, theirs = EpochMean(network, recipe.EqualAverage(start=START)), AveragedModel(network)
    ends = []
    for epoch in range(1, EPOCHS + 1):
        network.randomise(torch.Generator().manual_seed(epoch))
        average.epoch_ended(epoch)
        ends.append(weights(network))
        members = ends[START - 1 :]
        assert average.members == len(members)
        if not members:
            continue
        theirs.update_parameters(network)
        for name, parameter in average.network.named_parameters():
            expected = np.mean([end[name] for end in members], axis=0)
            np.testing.assert_allclose(parameter.numpy(), expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(weights(average.network), weights(theirs.module), rtol=0, atol=1e-6)


def test_the_first_member_is_the_network_itself_and_steps_are_none():
    network = Network()
    average = EpochMean(network, recipe.EqualAverage(start=2))
    before = copy.deepcopy(average.network.state_dict())
    network.randomise(torch.Generator().manual_seed(1))
    average.step_ended(1)
    average.epoch_ended(1)
    torch.testing.assert_close(average.network.state_dict(), before, rtol=0, atol=0)
    average.epoch_ended(2)
    torch.testing.assert_close(average.network.state_dict(), network.state_dict(), rtol=0, atol=0)


def test_a_mean_of_many_epochs_stays_exact():
    network = nn.Linear(4, 4)
    average, total = EpochMean(network, recipe.EqualAverage(start=1)), np.zeros((4, 4))
    generator = torch.Generator().manual_seed(0)
    for epoch in range(1, 301):
        with torch.no_grad():
            network.weight.copy_(torch.randn(4, 4, generator=generator))
        average.epoch_ended(epoch)
        total += network.weight.detach().double().numpy()
    np.testing.assert_allclose(average.network.weight.numpy(), total / 300, rtol=0, atol=1e-6)


def test_buffers_of_a_mean_over_epochs_are_those_of_the_last_member():
    network = Network()
    average = EpochMean(network, recipe.EqualAverage(start=START))
    train_epochs(network, average, 1, EPOCHS)
    torch.testing.assert_close(dict(average.network.named_buffers()), dict(network.named_buffers()), rtol=0, atol=0)
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert not any(parameter.requires_grad for parameter in average.network.parameters())


@pytest.mark.parametrize("stop", [1, START - 1, START, 7])
def test_a_saved_mean_over_epochs_continues_in_a_fresh_one_as_if_never_stopped(tmp_path, stop):
    settings = recipe.EqualAverage(start=START)
    network = Network()
    undisturbed = train_epochs(network, EpochMean(network, settings), 1, EPOCHS)
    network = Network()
    average = EpochMean(network, settings)
    train_epochs(network, average, 1, stop)
    checkpoint.save(str(tmp_path / "saved"), average.state_dict())
    network = Network()
    average = EpochMean(network, settings)
    average.load_state_dict(checkpoint.load(str(tmp_path / "saved")))
    assert average.members == max(stop - START + 1, 0)
    resumed = train_epochs(network, average, stop + 1, EPOCHS)
    # before its first member the average is nobody's
    for (_, found), (_, expected) in zip(resumed[max(START - stop - 1, 0) :], undisturbed[max(stop, START - 1) :], strict=True):
        for name in expected:
            np.testing.assert_array_equal(found[name], expected[name])


class Normed(nn.Module):
    """A layer, and its normalisation; dropout behind it changes no statistics."""

    def __init__(self):
        super().__init__()
        self.layer, self.norm, self.dropout = nn.Linear(3, 5), nn.BatchNorm1d(5, momentum=0.3), nn.Dropout(0.5)

    def forward(self, x):
        return self.dropout(self.norm(self.layer(x)))


def inputs(seed, batches, rows=16):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn((rows, 3), generator=generator) for _ in range(batches)]


def statistics(network, batches):
    """Mean and variance of every batch, as numpy has them, and their means over the batches."""
    weight, bias = (tensor.detach().double().numpy() for tensor in (network.layer.weight, network.layer.bias))
    outputs = [batch.double().numpy() @ weight.T + bias for batch in batches]
    return np.mean([y.mean(axis=0) for y in outputs], axis=0), np.mean([y.var(axis=0, ddof=1) for y in outputs], axis=0)


def test_statistics_of_batch_normalisation_are_the_means_of_those_of_the_batches():
    torch.manual_seed(0)
    network, batches = Normed().eval(), inputs(1, 7)
    network.norm.running_mean.fill_(1e6)
    before = copy.deepcopy(dict(network.named_parameters()))
    recompute_batch_norm(network, iter(batches), lambda array: [array])
    mean, variance = statistics(network, batches)
    np.testing.assert_allclose(network.norm.running_mean.numpy(), mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(network.norm.running_var.numpy(), variance, rtol=1e-5)
    torch.testing.assert_close(dict(network.named_parameters()), before, rtol=0, atol=0)
    assert network.norm.momentum == 0.3
    assert not network.training


def test_ranks_end_with_the_mean_of_their_statistics():
    torch.manual_seed(0)
    first = Normed()
    second = copy.deepcopy(first)
    ours, theirs = inputs(1, 4), inputs(2, 4)
    sent = []
    recompute_batch_norm(second, iter(theirs), lambda array: sent.append(array) or [array, array])
    others = iter(sent)
    recompute_batch_norm(first, iter(ours), lambda array: [array, next(others)])
    mean, variance = statistics(first, [*ours, *theirs])
    np.testing.assert_allclose(first.norm.running_mean.numpy(), mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(first.norm.running_var.numpy(), variance, rtol=1e-5)
    assert next(others, None) is None


def test_no_more_than_a_hundred_batches_are_read_for_batch_normalisation():
    network, batches = Normed(), iter(inputs(1, 120, rows=2))
    recompute_batch_norm(network, batches, lambda array: [array])
    assert len(list(batches)) == 20


@pytest.mark.parametrize("network", [nn.Linear(3, 3), nn.BatchNorm1d(3, track_running_stats=False)], ids=["none", "without memory"])
def test_without_statistics_of_batch_normalisation_nothing_is_read_and_nobody_asked(network):
    before = copy.deepcopy(network.state_dict())
    recompute_batch_norm(network, (pytest.fail("read a batch") for _ in range(1)), lambda _: pytest.fail("asked the other ranks"))
    assert before.keys() == network.state_dict().keys()
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)
