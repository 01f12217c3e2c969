"""Water tendencies that are learned as departures from losing all of the water, and the statistics beside them."""

import json
from functools import lru_cache

import numpy as np
import pytest
import torch

from leapray.climsim.grid import figures
from leapray.climsim.schema import KAGGLE
from leapray.data.fitting import Fitting
from leapray.data.moments import Moments
from leapray.data.transform import Transform, departure_candidates
from leapray.errors import UserError
from leapray.recipe import Choice
from tests.columns import INPUTS, LEARNED, TARGETS

STEP = 1200.0
LOST, KEPT, EXACT_ONE, AS_TEXT = "ptend_q0002_27", "ptend_q0003_40", "ptend_q0002_28", "ptend_q0002_29"
"""Lost in nearly all rows; lost in half of them, but not in the rows that matter; lost in all; lost in all of a file of text."""
WATER = ("q0001", "q0002", "q0003")


def target(column: str) -> int:
    return TARGETS.columns.index(column)


def source(column: str) -> int:
    """The state whose loss a column may be."""
    return INPUTS.columns.index(column.replace("ptend", "state"))


@lru_cache
def rows(count: int = 500, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Raw inputs and targets of which one water column is lost in nearly all rows, and targets otherwise far larger than what is lost."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(count, INPUTS.width)) + 5
    for water in WATER:
        x[:, INPUTS[f"state_{water}"]] = 10.0 ** generator.uniform(-9, -5, (count, 60))
    y = generator.normal(size=(count, TARGETS.width))
    for column in (LOST, KEPT, EXACT_ONE, AS_TEXT):
        y[:, target(column)] = -x[:, source(column)] / STEP
    few = generator.uniform(size=count) < 0.03
    y[few, target(LOST)] *= 0.5
    y[::2, target(KEPT)] *= -30
    y[:, target(AS_TEXT)] = [float(f"{value:.15g}") for value in y[:, target(AS_TEXT)]]
    x.flags.writeable = y.flags.writeable = False
    return x, y


@lru_cache
def fitted(name: str = "standard", departures: bool | None = None, features: tuple[str, ...] = ()) -> Transform:
    options = {} if departures is None else {"departures": departures}
    fitting = Fitting(KAGGLE, Choice(name=name, options=options), features)
    return fitting.fit(Moments.of(fitting.columns(*rows())), {"source": "here", "months": "some", "rows": 500})


def by_hand() -> np.ndarray:
    """A mask of the columns whose departure has less than half of the variance, among the learned ones of water.

    Those of vapour and ice must have a thousandth of the variance that they have in the competition's training set.
    """
    x, y = rows()
    known = dict(zip(figures("competition_columns")["column"], map(float, figures("competition_columns")["std"]), strict=True))
    mask = np.zeros(TARGETS.width, bool)
    for column in TARGETS.columns:
        place = target(column)
        if LEARNED[place] and any(f"ptend_{water}" in column for water in WATER):
            varies = "q0002" in column or np.var(y[:, place]) >= 1e-3 * known[column] ** 2
            mask[place] = varies and np.var(y[:, place] + x[:, source(column)] / STEP) < 0.5 * np.var(y[:, place])
    return mask


def z_by_hand(transform: Transform) -> np.ndarray:
    """Float64 targets as they should be scaled, where they are not masked."""
    x, y = rows()
    learned = y.copy()
    for column in transform.departures:
        learned[:, target(column)] += x[:, source(column)] / STEP
    std = learned.std(axis=0)
    return np.where(transform.targets.constant.numpy(), 0.0, (learned - learned.mean(axis=0)) / np.where(std > 0, std, 1.0))


@pytest.mark.parametrize("features", [(), ("air_total",)])
@pytest.mark.parametrize("name", ["standard", "log-per-variable"])
def test_a_water_column_is_learned_as_its_departure_where_that_varies_much_less(name: str, features: tuple[str, ...]) -> None:
    found = fitted(name, None, features).departures
    assert {LOST, EXACT_ONE, AS_TEXT} <= set(found)
    assert KEPT not in found
    assert found == np.array(TARGETS.columns)[by_hand()].tolist()


@pytest.mark.parametrize(("name", "departures"), [("standard", False), ("log-per-variable", False), ("reference", None)])
def test_a_recipe_without_departures_learns_every_column_as_it_is(name: str, departures: bool | None) -> None:
    transform = fitted(name, departures)
    assert transform.departures == []
    _, y = rows()
    scale = transform.targets.scale.numpy()[target(LOST)]
    assert scale == pytest.approx(y[:, target(LOST)].std(), rel=1e-12)


def test_candidates_are_the_learned_columns_of_the_three_water_species() -> None:
    expected = [c for c in TARGETS.columns if LEARNED[target(c)] and c.rsplit("_", 1)[0] in [f"ptend_{water}" for water in WATER]]
    assert departure_candidates(KAGGLE) == expected
    assert len(departure_candidates(KAGGLE)) == 129


def test_moments_of_raw_columns_are_those_of_whole_rows() -> None:
    fitting, (x, y) = Fitting(KAGGLE, Choice(name="standard"), ()), rows()
    assert fitting.raw
    columns = list(np.hstack([x, y]).T)
    found = np.stack(fitting.raw_columns(columns), axis=1)
    np.testing.assert_array_equal(found, fitting.columns(x, y))


@pytest.mark.parametrize("scripted", [False, True])
@pytest.mark.parametrize("name", ["standard", "log-per-variable"])
def test_targets_go_there_and_back_with_departures(name: str, scripted: bool) -> None:
    transform = fitted(name)
    module = torch.jit.script(transform) if scripted else transform
    x, y = (torch.from_numpy(values.copy()) for values in rows())
    z = z_by_hand(transform)
    np.testing.assert_allclose(module.scale_targets(y, x).numpy(), z, rtol=1e-6, atol=1e-6)
    back = module.unscale_targets(torch.from_numpy(z), x).numpy()
    bound = 1e-12 * np.maximum(rows()[1].std(axis=0), np.abs(rows()[1]).max(axis=0))
    assert (np.abs(back - y.numpy()) <= bound).all()


def test_what_differs_from_the_loss_by_rounding_alone_is_masked_and_comes_back_as_the_loss() -> None:
    transform = fitted()
    x, y = rows()
    for column in (EXACT_ONE, AS_TEXT):
        assert transform.targets.constant[target(column)]
    assert not transform.targets.constant[target(LOST)]
    assert np.ptp(y[:, target(AS_TEXT)] + x[:, source(AS_TEXT)] / STEP) > 0
    anything = torch.from_numpy(np.random.default_rng(0).normal(size=y.shape))
    back = transform.unscale_targets(anything, torch.from_numpy(x.copy())).numpy()
    for column in (EXACT_ONE, AS_TEXT):
        np.testing.assert_allclose(back[:, target(column)], -x[:, source(column)] / STEP, rtol=1e-9)


def test_rows_of_shards_come_back_to_what_they_were_within_float32() -> None:
    transform = fitted()
    x, y = (torch.from_numpy(values.copy()) for values in rows())
    found = transform.physical_truth(transform.scale_targets(y, x), transform.scale_inputs(x)).numpy()
    assert (np.abs(found - y.numpy()) <= 2e-6 * np.abs(y.numpy()).max(axis=0)).all()


def test_the_statistics_are_those_of_the_physical_truth() -> None:
    _, y = rows()
    for transform in (fitted(), fitted("standard", False), fitted("log-per-variable"), fitted("reference")):
        np.testing.assert_allclose(transform.statistics.mean, y.mean(axis=0), rtol=1e-10, atol=1e-14)
        np.testing.assert_allclose(transform.statistics.variance, y.var(axis=0), rtol=1e-10)
        assert transform.statistics.origin == "500 training rows of here, months some"


def test_departures_and_statistics_stand_in_the_file_and_decide_its_digest() -> None:
    transform = fitted()
    content = json.loads(json.dumps(transform.to_dict()))
    again = Transform.from_dict(content)
    assert again.departures == transform.departures
    np.testing.assert_array_equal(again.statistics.mean, transform.statistics.mean)
    np.testing.assert_array_equal(again.statistics.variance, transform.statistics.variance)
    assert again.statistics.origin == transform.statistics.origin
    x, y = (torch.from_numpy(values.copy()) for values in rows())
    assert torch.equal(again.scale_targets(y, x), transform.scale_targets(y, x))
    assert again.digest() == transform.digest() != Transform.from_dict(content | {"departures": []}).digest()


def test_a_file_of_before_there_were_statistics_is_refused_in_one_sentence() -> None:
    content = fitted().to_dict()
    del content["statistics"]
    with pytest.raises(UserError) as caught:
        Transform.from_dict(content, "transform.json")
    assert str(caught.value).startswith("transform.json: made by an earlier leapray")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("departures", [["ptend_t_3"], ["ptend_q0002_12"], ["none such"], 3])
def test_a_departure_that_cannot_be_is_refused(departures: object) -> None:
    with pytest.raises(UserError, match="x: not a transform"):
        Transform.from_dict(fitted().to_dict() | {"departures": departures}, "x")


@pytest.mark.parametrize(("key", "value"), [("mean", float("nan")), ("variance", -1.0), ("variance", float("inf"))])
def test_damaged_statistics_are_refused(key: str, value: float) -> None:
    content = json.loads(json.dumps(fitted().to_dict()))
    content["statistics"][key][5] = value
    with pytest.raises(UserError, match="x: not statistics of the targets"):
        Transform.from_dict(content, "x")


def test_the_climatology_scales_inputs_alike_and_gives_the_training_mean_for_0() -> None:
    transform = fitted()
    climatology = transform.climatology()
    x, y = (torch.from_numpy(values.copy()) for values in rows())
    assert climatology.input_digest() == transform.input_digest()
    assert torch.equal(climatology.scale_inputs(x), transform.scale_inputs(x))
    nothing = torch.zeros(len(y), TARGETS.width)
    for found in (climatology.unscale_targets(nothing, x), climatology.physical_truth(nothing, climatology.scale_inputs(x))):
        np.testing.assert_allclose(found.numpy(), np.tile(y.numpy().mean(axis=0), (len(y), 1)), rtol=1e-10, atol=1e-14)
    np.testing.assert_array_equal(climatology.statistics.variance, transform.statistics.variance)


def test_the_digest_of_inputs_tells_what_a_network_is_given_and_nothing_else() -> None:
    same = [fitted(), fitted("standard", False), fitted().climatology()]
    assert len({transform.digest() for transform in same}) == 3
    assert len({transform.input_digest() for transform in same}) == 1
    others = [fitted("log-per-variable"), fitted("reference"), fitted("standard", None, ("air_total",))]
    assert len({transform.input_digest() for transform in (*others, fitted())}) == 4


def test_the_identity_changes_nothing() -> None:
    transform = Transform.identity(KAGGLE)
    x, y = (torch.from_numpy(values.copy()) for values in rows())
    assert torch.equal(transform.scale_inputs(x), x.float())
    assert torch.equal(transform.scale_targets(y, x), y.float())
    assert torch.equal(transform.unscale_targets(y, x), y)
    assert torch.equal(transform.physical_truth(y.float(), x.float()), y.float().double())


def test_input_columns_whose_spread_float32_cannot_hold_are_masked() -> None:
    x, y = (values.copy() for values in rows())
    noise = np.random.default_rng(1).normal(size=len(x))
    held = {"state_t_3": 300 + 0.05 * noise, "state_u_3": 1e-30 * noise, "state_v_3": 1 + 1e-4 * noise}
    lost = {"state_t_4": 1 + 1e-9 * noise, "state_u_4": 1e-40 * noise, "state_v_4": 3e4 + 1e-3 * noise}
    for column, values in (held | lost).items():
        x[:, INPUTS.columns.index(column)] = values
    fitting = Fitting(KAGGLE, Choice(name="standard"), ())
    transform = fitting.fit(Moments.of(fitting.columns(x, y)), {})
    constant = dict(zip(INPUTS.columns, transform.inputs.constant.tolist(), strict=True))
    assert [constant[column] for column in held] == [False] * 3
    assert [constant[column] for column in lost] == [True] * 3
    # rounded to float32, what is left moves by little of its spread
    rounded = transform.scale_inputs(torch.from_numpy(x.astype(np.float32)))
    exact = transform.scale_inputs(torch.from_numpy(x))
    assert (rounded - exact).abs().max() < 0.01


def test_ice_that_is_silent_in_the_training_rows_is_learned_as_it_is() -> None:
    x, y = (values.copy() for values in rows())
    silent, loud = "ptend_q0003_13", "ptend_q0003_20"
    for column, std in ((silent, 1e-21), (loud, 1e-9)):
        x[:, source(column)] = np.abs(np.random.default_rng(0).normal(size=len(x))) * std * STEP
        y[:, target(column)] = -x[:, source(column)] / STEP
    fitting = Fitting(KAGGLE, Choice(name="standard"), ())
    transform = fitting.fit(Moments.of(fitting.columns(x, y)), {})
    assert silent not in transform.departures
    assert loud in transform.departures


def test_truth_that_is_constant_in_training_is_not_lost_in_other_rows() -> None:
    x, y = (values.copy() for values in rows())
    column = target("ptend_t_20")
    y[:, column] = 3e-5
    departed = "ptend_q0002_40"
    x[:, source(departed)] = np.abs(np.random.default_rng(1).normal(size=len(x)))
    y[:, target(departed)] = -x[:, source(departed)] / STEP
    fitting = Fitting(KAGGLE, Choice(name="standard"), ())
    transform = fitting.fit(Moments.of(fitting.columns(x, y)), {})
    assert departed in transform.departures
    other = y.copy()
    other[:, column] = np.linspace(-1e-4, 1e-4, len(y))
    other[:, target(departed)] *= 0.5
    inputs, targets = torch.from_numpy(x), torch.from_numpy(other)
    scaled, z = transform.scale_inputs(inputs), transform.scale_targets(targets, inputs)
    found = transform.physical_truth(z, scaled).numpy()
    for place in (column, target(departed)):
        np.testing.assert_allclose(found[:, place], other[:, place], rtol=1e-4, atol=1e-6 * np.abs(other[:, place]).max())
    # a network never learned it: its prediction is what training had
    assert transform.physical_prediction(torch.randn(z.shape), scaled).numpy()[:, column] == pytest.approx(3e-5)
