"""Several emulators as one: their outputs averaged by column, the physics last."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from leapray.climsim.schema import FLUXES, KAGGLE, STEP_SECONDS
from leapray.data.fitting import Fitting
from leapray.data.moments import Moments
from leapray.data.transform import Transform
from leapray.inference.emulators import Emulators, Members
from leapray.inference.weights import Combination, mean_weights
from leapray.models.directory import save_model
from leapray.models.emulator import Emulator
from leapray.models.registry import build_network
from leapray.recipe import Choice
from tests.columns import ABLATED, CHANNELS, EXACT, EXACT_SOURCE, INPUTS, TARGETS
from tests.samples import random_rows

CPU = torch.device("cpu")
ALONE = Combination.of(mean_weights(1, TARGETS))
ROWS = 600
X = np.asfortranarray(random_rows(ROWS, seed=3)[:, : INPUTS.width])
WATER = slice(TARGETS["ptend_q0001"].start, TARGETS["ptend_q0003"].stop)
FLUXES_START = TARGETS[FLUXES[0].name].start
STATE = slice(INPUTS["state_q0001"].start, INPUTS["state_q0003"].stop)


def transform(scaling: str = "standard") -> Transform:
    return Fitting(KAGGLE, Choice(name=scaling), ()).fit(Moments.of(random_rows(200)), {})


def emulator(seed: int, scaling: str = "standard") -> Emulator:
    torch.manual_seed(seed)
    return Emulator(transform(scaling), build_network("mlp", {"hidden": [8]}, CHANNELS)).eval()


@torch.inference_mode()
def outputs(emulators: list[Emulator]) -> np.ndarray:
    return np.stack([emulator.tendencies(torch.from_numpy(X)).numpy() for emulator in emulators])


def with_physics(y: np.ndarray) -> np.ndarray:
    """The physics by hand."""
    y = y.copy()
    y[:, WATER] = np.maximum(y[:, WATER], -X[:, STATE] / STEP_SECONDS)
    y[:, EXACT] = -X[:, EXACT_SOURCE] / STEP_SECONDS
    y[:, FLUXES_START:] = np.maximum(y[:, FLUXES_START:], 0)
    y[:, ABLATED] = 0
    return y


@pytest.mark.parametrize("scaling", ["standard", "log-per-variable"])
def test_each_column_is_the_weighted_mean_and_the_physics_comes_last(scaling: str) -> None:
    members = [emulator(0), emulator(1, scaling), emulator(2)]
    weights = np.random.default_rng(0).dirichlet(np.ones(3), TARGETS.width).T
    predicted = Emulators(Members(members, CPU), Combination.of(weights)).predict(X, members=True)
    own = outputs(members)
    np.testing.assert_allclose(predicted.ensemble, with_physics(np.einsum("mc,mnc->nc", weights, own)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(np.stack(predicted.members), own, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(predicted.ensemble[:, EXACT], -X[:, EXACT_SOURCE] / STEP_SECONDS)


def test_a_column_that_falls_back_is_its_constant_and_then_goes_through_the_physics() -> None:
    members = [emulator(0), emulator(1)]
    weights, constant = np.full((2, TARGETS.width), 0.5), np.zeros(TARGETS.width)
    temperature, rain = TARGETS["ptend_t"].start + 30, TARGETS["cam_out_PRECC"].start
    weights[:, [temperature, rain]] = 0.0
    constant[temperature], constant[rain] = 1.5, -2.0
    predicted = Emulators(Members(members, CPU), Combination(weights, constant)).predict(X).ensemble
    assert (predicted[:, temperature] == 1.5).all()
    assert (predicted[:, rain] == 0).all()
    own = outputs(members)
    np.testing.assert_allclose(predicted[:, :30], own[:, :, :30].mean(axis=0), rtol=1e-4, atol=1e-6)


def test_members_are_given_only_when_they_are_asked_for() -> None:
    assert Emulators(Members([emulator(0)], CPU), ALONE).predict(X).members == ()


def test_one_emulator_is_predicted_as_it_predicts_itself() -> None:
    one = emulator(0)
    with torch.inference_mode():
        expected = one(torch.from_numpy(X)).numpy()
    np.testing.assert_allclose(Emulators(Members([one], CPU), ALONE).predict(X).ensemble, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rows", [1, 7, ROWS, 2 * ROWS])
def test_how_many_rows_pass_at_a_time_changes_nothing(rows: int) -> None:
    emulators = Emulators(Members([emulator(0)], CPU), ALONE)
    expected = emulators.predict(X).ensemble
    emulators.members.rows = rows
    np.testing.assert_allclose(emulators.predict(X).ensemble, expected, rtol=1e-4, atol=1e-6)


class Large(nn.Module):
    """A network whose device has memory for ``most`` rows."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most, self.taken = most, []

    def forward(self, x: Tensor) -> Tensor:
        self.taken.append(len(x))
        if len(x) > self.most:
            raise torch.OutOfMemoryError
        return x[:, : TARGETS.width]


def test_batches_are_halved_until_they_fit_into_memory() -> None:
    network = Large(100)
    emulators = Emulators(Members([Emulator(transform(), network).eval()], CPU), ALONE)
    predicted = emulators.predict(X)
    assert network.taken == [512, 256, 128, *[64] * 9, 24]
    assert emulators.members.rows == 64
    plain = Emulators(Members([Emulator(transform(), Large(ROWS)).eval()], CPU), ALONE)
    np.testing.assert_array_equal(predicted.ensemble, plain.predict(X).ensemble)


def test_a_device_without_room_for_one_row_says_so() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        Emulators(Members([Emulator(transform(), Large(0))], CPU), ALONE).predict(X)


def test_threads_divide_the_rows_of_a_recurrent_network() -> None:
    torch.manual_seed(0)
    options = {"encoder": (8,), "lstm_hidden": 4, "lstm_layers": 1, "gru_hidden": 2, "head": ()}
    network, shares = build_network("low-res-aqua", options, CHANNELS), []
    one = Emulator(transform(), network).eval()
    network.register_forward_pre_hook(lambda _, given: shares.append(len(given[0])))
    predicted, before = {}, torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            predicted[threads] = Emulators(Members([one], CPU), ALONE).predict(X).ensemble
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert shares == [512, ROWS - 512, 256, 256, *[(ROWS - 512) // 2] * 2]
    scale = np.abs(predicted[1]).max(axis=0) + 1e-30
    np.testing.assert_allclose(predicted[2] / scale, predicted[1] / scale, atol=1e-5)


def test_models_are_loaded_from_their_directories(tmp_path: Path) -> None:
    choice, one = Choice(name="mlp", options={"hidden": [8]}), emulator(5)
    save_model(str(tmp_path), one.network.state_dict(), choice, one.transform)
    loaded = Emulators(Members.load([str(tmp_path)], CPU), ALONE)
    np.testing.assert_array_equal(loaded.predict(X).ensemble, Emulators(Members([one], CPU), ALONE).predict(X).ensemble)
