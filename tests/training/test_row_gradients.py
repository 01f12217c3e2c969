"""A CPU step whose rows are divided among threads: the numbers of the ordinary step, the same in every run."""

import logging
import threading

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.parametrizations import spectral_norm

from leapray.climsim.row_keys import KINDS
from leapray.errors import UserError
from leapray.models.registry import build_network
from leapray.training import checkpoint
from leapray.training.feed import OnDevice
from leapray.training.loop import Loop
from leapray.training.losses import LOSSES
from leapray.training.optimizers import OPTIMIZERS
from leapray.training.row_gradients import cannot_divide
from leapray.training.step import Step
from tests.columns import CHANNELS, INPUTS, TARGETS
from tests.training.test_loop import CPU, Batches, linear, normed, same, timeless, training

AQUA = {"encoder": (8,), "lstm_hidden": 4, "lstm_layers": 2, "gru_hidden": 2, "head": ()}
KIND_OF_SOURCE = torch.tensor([list(KINDS).index(kind) for kind in ("low-res", "high-res")])
PAIR = {"name": "pair", "options": {"vertical_difference": 0.1}}


@pytest.fixture(autouse=True)
def three_threads(one_thread: None) -> None:
    torch.set_num_threads(3)


def network(dropout: float = 0.0, name: str = "low-res-aqua") -> nn.Module:
    torch.manual_seed(3)
    options = {"embedding": 4, "hidden": 4, "layers": 3, "head": 8} if name == "low-res-high-res" else AQUA
    return build_network(name, {**options, "dropout": dropout, "confidence": True}, CHANNELS)


def batch(rows: int, seed: int = 0) -> OnDevice:
    generator = torch.Generator().manual_seed(seed)
    inputs, targets = (torch.randn(rows, side.width, generator=generator) for side in (INPUTS, TARGETS))
    return OnDevice(inputs, targets, torch.arange(rows) % 2)


def steps(net: nn.Module, batches: list[OnDevice], how: str | None, descend: float = 0.0, **settings: object) -> tuple[Step, list[float]]:
    """A step that has taken these batches, by plain descent at a rate if one is given, and their losses."""
    # operators that several threads divide give the same numbers, slowly
    torch.set_num_threads(1 if how == "operators" else 3)
    chosen = training(batch_size=len(batches[0].inputs), **settings)
    optimizer = torch.optim.SGD(net.parameters(), descend) if descend else OPTIMIZERS.build(chosen.optimizer, net.parameters())
    step = Step(net.train(), LOSSES.build(chosen.loss, CHANNELS), optimizer, chosen, KIND_OF_SOURCE, cpu_threading=how)
    with step.threads():
        return step, [float(step(one)) for one in batches]


@pytest.mark.parametrize("rows", [16, 17, 2], ids=["", "uneven", "few"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"clip_norm": 1e-2}, {"accumulate": 2}, {"accumulate": 2, "clip_norm": 0.1, "loss": PAIR}, {"loss": PAIR}],
    ids=lambda settings: " ".join(settings),
)
def test_gradients_and_losses_are_those_of_the_ordinary_step(rows, settings):
    ours, theirs, began = network(), network(), network()
    for seed in (0, 1):
        # plain descent shows the gradient: the first time alone, then that of the weights it led to
        _, losses = steps(ours, [batch(rows, seed)], "rows", descend=0.5, **settings)
        _, expected = steps(theirs, [batch(rows, seed)], "operators", descend=0.5, **settings)
        assert losses == pytest.approx(expected, rel=1e-5)
        for one, other, first in zip(ours.parameters(), theirs.parameters(), began.parameters(), strict=True):
            moved, found = (other - first).detach(), (one - first).detach()
            torch.testing.assert_close(found, moved, rtol=1e-3, atol=1e-5 * float(moved.abs().max()) + 1e-7)
            assert moved.any()


def test_a_training_has_the_figures_and_weights_of_the_ordinary_one(tmp_path):
    def fitted(how: str) -> tuple[dict, list]:
        torch.set_num_threads(1 if how == "operators" else 3)
        chosen = training(epochs=2, accumulate=3, clip_norm=0.5, ema={"every": 2, "after": 3}, validations=2)
        result = Loop(network(), Batches(steps=4), chosen, CPU, cpu_threading=how).fit()
        return result.weights, result.history

    before = set(threading.enumerate())
    (theirs, theirs_told), (ours, ours_told), (again, again_told) = (fitted(how) for how in ("operators", "rows", "rows"))
    assert set(threading.enumerate()) == before
    assert torch.get_num_threads() == 3
    assert [one["row_checksum"] for one in ours_told] == [one["row_checksum"] for one in theirs_told]
    assert same(ours, again)
    assert timeless(ours_told) == timeless(again_told)
    for name, weights in theirs.items():
        torch.testing.assert_close(ours[name], weights, rtol=1e-3, atol=1e-4)
    for one, other in zip(ours_told, theirs_told, strict=True):
        for key in ("loss", "val_loss", "r2"):
            assert one[key] == pytest.approx(other[key], rel=1e-3), key


def test_frozen_parameters_stay_and_unused_ones_have_no_gradient():
    class Partly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.frozen, self.used, self.unused = (nn.Linear(INPUTS.width, TARGETS.width) for _ in range(3))
            self.frozen.requires_grad_(False)

        def forward(self, x):
            return self.frozen(x) + self.used(x)

    torch.manual_seed(0)
    net = Partly()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    # weight decay would move a parameter whose gradient is 0
    steps(net, [batch(8)], "rows", optimizer={"name": "adamw", "options": {"lr": 0.1, "weight_decay": 0.5}})
    changed = {name.partition(".")[0] for name, tensor in net.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"used"}


@pytest.mark.parametrize(
    ("net", "how", "shares"), [("low-res-aqua", None, 3), ("low-res-high-res", None, 3), ("low-res-aqua", "operators", 1)]
)
def test_the_rows_of_recurrent_networks_are_divided_by_default(net, how, shares):
    taken = []
    divided = network(name=net)
    divided.register_forward_pre_hook(lambda _, given: taken.append(len(given[0])))
    steps(divided, [batch(12)], how)
    assert taken == [12 // shares] * shares


def test_other_networks_are_divided_only_if_asked():
    taken = []
    net = linear()
    net.register_forward_pre_hook(lambda _, given: taken.append(len(given[0])))
    for how in (None, "operators", "rows"):
        steps(net, [batch(12)], how)
    assert taken == [12, 12, 4, 4, 4]


def test_outside_the_block_and_with_one_thread_the_step_is_the_ordinary_one():
    taken = []
    net = network()
    net.register_forward_pre_hook(lambda _, given: taken.append(len(given[0])))
    step, _ = steps(net, [batch(12)], "rows")
    step(batch(12))
    step.predict(net, batch(12).inputs)
    torch.set_num_threads(1)
    with step.threads():
        step(batch(12))
    assert taken == [4, 4, 4, 12, 12, 12]


@pytest.mark.parametrize("name", ["low-res-aqua", "low-res-high-res", "layers"])
def test_dropout_repeats_and_goes_on_after_a_resume(name, tmp_path):
    def loop(seed: int = 0) -> Loop:
        torch.manual_seed(3)
        net = linear(0.3) if name == "layers" else network(0.4, name)
        return Loop(net, Batches(steps=4), training(epochs=2, seed=seed), CPU, cpu_threading="rows")

    whole = loop().fit()
    assert same(whole.weights, loop().fit().weights)
    assert not same(whole.weights, loop(seed=1).fit().weights)
    cut = loop()

    def keep() -> None:
        if cut.done == 4:
            checkpoint.save(f"{tmp_path}/4", cut.state())

    cut.fit(keep=keep)
    resumed = loop()
    resumed.restore(checkpoint.load(f"{tmp_path}/4"))
    assert same(resumed.fit().weights, whole.weights)


def test_threads_drop_different_elements():
    net = nn.Sequential(nn.Dropout(0.5), nn.Linear(INPUTS.width, TARGETS.width))
    seen = []
    net[1].register_forward_pre_hook(lambda _, given: seen.append(given[0].detach() == 0))
    steps(net, [batch(12)], "rows")
    assert len(seen) == 3
    assert not any(torch.equal(one, other) for i, one in enumerate(seen) for other in seen[:i])
    assert torch.stack(seen).float().mean() == pytest.approx(0.5, abs=0.05)


def test_other_random_numbers_are_refused():
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map = nn.Linear(INPUTS.width, TARGETS.width)

        def forward(self, x):
            return self.map(x + torch.randn_like(x))

    with pytest.raises(UserError, match=r"random numbers other than dropout's .* set resources\.cpu_threading to operators"):
        steps(Noisy(), [batch(12)], "rows")
    steps(Noisy(), [batch(12)], "operators")


@pytest.mark.parametrize(
    ("net", "settings", "reason"),
    [
        (normed, {}, "BatchNorm1d depends on all rows"),
        (lambda: nn.Sequential(spectral_norm(nn.Linear(INPUTS.width, TARGETS.width))), {}, "parametrized weight"),
        (lambda: nn.Sequential(nn.AlphaDropout(0.1), linear()), {}, "AlphaDropout draws"),
        (network, {"precision": "bf16"}, "training.precision is bf16, expected float32"),
    ],
    ids=["batch norm", "parametrized", "other dropout", "bf16"],
)
def test_a_step_that_cannot_divide_its_rows_is_the_ordinary_one(net, settings, reason, caplog):
    caplog.set_level(logging.INFO, "leapray")
    weights = {}
    for how in ("rows", "operators"):
        made, taken = net(), []
        made.register_forward_pre_hook(lambda _, given, taken=taken: taken.append(len(given[0])))
        torch.manual_seed(7)
        steps(made, [batch(12)], how, descend=0.1, **settings)
        assert taken == [12]
        weights[how] = made.state_dict()
    for name, ours in weights["rows"].items():
        torch.testing.assert_close(ours, weights["operators"][name])
    (said,) = caplog.records
    assert reason in said.getMessage()
    assert said.levelno == logging.WARNING


def test_ranks_that_exchange_gradients_do_not_divide_rows(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        assert "workers exchange gradients" in cannot_divide(DistributedDataParallel(network()), training())
        taken = []
        net = network()
        net.register_forward_pre_hook(lambda _, given: taken.append(len(given[0])))
        steps(DistributedDataParallel(net), [batch(12)], "rows")
        assert taken == [12]
    finally:
        torch.distributed.destroy_process_group()


def test_a_fault_is_told_of_all_rows():
    poisoned = batch(12)
    # of the first and the last thread's rows, each of another source
    for row, column in ((0, "ptend_t_3"), (11, "ptend_u_20")):
        poisoned.targets[row, list(TARGETS.columns).index(column)] = float("nan")
    flags = {how: steps(network(), [poisoned], how)[0].faults.to_array() for how in ("rows", "operators")}
    assert flags["rows"] == flags["operators"]
    assert sum(flags["rows"]) == 2 + 2
