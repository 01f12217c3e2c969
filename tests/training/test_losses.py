import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from leapray.climsim.row_keys import KINDS
from leapray.climsim.schema import LEVELS
from leapray.errors import UserError
from leapray.recipe import Choice
from leapray.training.losses import LOSSES
from tests.columns import CHANNELS, LEARNED, SCORED, TARGETS

ROWS = 5
LOW_RES, AQUA_PLANET, HIGH_RES = (list(KINDS).index(kind) for kind in ("low-res", "aqua-planet", "high-res"))
MASKS = {"learned": LEARNED, "scored": SCORED, "all": np.full(TARGETS.width, True)}


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, ROWS, TARGETS.width, generator=generator).mul(2).unbind()


def build(name, **options):
    return LOSSES.build(Choice(name=name, options=options), CHANNELS)


def float64(values):
    return values.numpy().astype(np.float64)


def huber(error, delta=1.0):
    size = np.abs(error)
    return np.where(size <= delta, size**2 / 2, delta * (size - delta / 2))


ELEMENTWISE = [
    ("huber", {}, huber),
    ("huber", {"delta": 0.25}, lambda error: huber(error, 0.25)),
    ("mae", {}, np.abs),
    ("mse", {}, np.square),
    ("smooth-l1", {}, huber),
    ("smooth-l1", {"beta": 0.5}, lambda error: np.where(np.abs(error) < 0.5, error**2, np.abs(error) - 0.25)),
    ("pair", {}, lambda error: np.abs(error) + 0.08 * error**2),
]


def assert_rows(found, expected):
    assert found.shape == (ROWS,)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, rtol=2e-6)


@pytest.mark.parametrize(("name", "options", "by_hand"), ELEMENTWISE)
def test_a_rows_loss_is_the_mean_over_the_learned_columns(pair, name, options, by_hand):
    prediction, target = pair
    error = float64(prediction) - float64(target)
    assert_rows(build(name, **options)(prediction, target), by_hand(error[:, LEARNED]).mean(1))


@pytest.mark.parametrize("columns", MASKS)
def test_columns_and_scale_are_as_asked(pair, columns):
    prediction, target = pair
    error = (float64(prediction) - float64(target))[:, MASKS[columns]]
    assert_rows(build("huber", columns=columns, scale=4)(prediction, target), 4 * huber(error).mean(1))


@pytest.mark.parametrize("columns", MASKS)
def test_vertical_differences_are_those_of_neighbours_in_one_profile(pair, columns):
    prediction, target = pair
    mask, error = MASKS[columns], float64(prediction) - float64(target)
    differences = [
        error[:, TARGETS[profile.name].start + level + 1] - error[:, TARGETS[profile.name].start + level]
        for profile in TARGETS.profiles
        for level in range(LEVELS - 1)
        if mask[TARGETS[profile.name].start + level] and mask[TARGETS[profile.name].start + level + 1]
    ]
    expected = huber(error[:, mask]).mean(1) + 0.3 * huber(np.stack(differences, 1)).mean(1)
    assert_rows(build("huber", columns=columns, vertical_difference=0.3)(prediction, target), expected)


@pytest.mark.parametrize("name", LOSSES.entries)
@pytest.mark.parametrize("columns", ["learned", "scored"])
def test_nothing_in_other_columns_matters(pair, name, columns):
    prediction, target = pair
    loss, left_out = build(name, columns=columns, vertical_difference=0.5), ~MASKS[columns]
    before = loss(prediction, target)
    prediction, target = prediction.clone().requires_grad_(), target.clone()
    with torch.no_grad():
        prediction[:, left_out] = torch.nan
        target[:, left_out] = torch.inf
    after = loss(prediction, target)
    after.sum().backward()
    assert torch.equal(after, before)
    assert torch.count_nonzero(prediction.grad[:, left_out]) == 0
    assert torch.isfinite(prediction.grad).all()


@pytest.mark.parametrize("name", LOSSES.entries)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_row_with_a_bad_target_has_a_loss_that_is_not_finite(pair, name, bad):
    prediction, target = pair
    target = target.clone()
    target[2, np.flatnonzero(LEARNED)[0]] = bad
    assert torch.isfinite(build(name)(prediction, target)).tolist() == [True, True, False, True, True]


@pytest.mark.parametrize("name", LOSSES.entries)
def test_is_float32_for_a_half_precision_prediction(pair, name):
    prediction, target = pair
    half = prediction.to(torch.bfloat16)
    loss = build(name, vertical_difference=1)
    assert loss(half, target).dtype == torch.float32
    assert torch.equal(loss(half, target), loss(half.float(), target))


@pytest.mark.parametrize(("name", "options", "by_hand"), ELEMENTWISE)
def test_confidence_is_trained_to_predict_the_loss_and_only_that(pair, name, options, by_hand):
    prediction, target = pair
    confidence = torch.randn(ROWS, TARGETS.width, generator=torch.Generator().manual_seed(2))
    error = (float64(prediction) - float64(target))[:, LEARNED]
    loss = build(name, **options)
    expected = by_hand(error).mean(1) + by_hand(float64(confidence)[:, LEARNED] - by_hand(error)).mean(1)
    both = torch.cat([prediction, confidence], 1).requires_grad_()
    found = loss(both, target)
    found.sum().backward()
    assert_rows(found.detach(), expected)
    alone = prediction.clone().requires_grad_()
    loss(alone, target).sum().backward()
    torch.testing.assert_close(both.grad[:, : TARGETS.width], alone.grad, rtol=0, atol=0)
    assert torch.count_nonzero(both.grad[:, TARGETS.width :]) > 0


def test_ordinary_rows_weigh_the_same():
    weights = build("huber").row_weights(8, torch.tensor([0, 0, 2, 2, 2, 2, 2, 2]), torch.device("cpu"))
    assert torch.equal(weights, torch.full((8,), 1 / 8))


def test_pair_weighs_each_kinds_errors(pair):
    prediction, target = pair
    kind = torch.tensor([LOW_RES, HIGH_RES, HIGH_RES, AQUA_PLANET, LOW_RES])
    error = (float64(prediction) - float64(target))[:, LEARNED]
    absolute, squared = np.abs(error).mean(1), (error**2).mean(1)
    high = kind.numpy() == HIGH_RES
    expected = np.where(high, 0.3 * absolute + 0.0005 * squared, absolute + 0.08 * squared)
    assert_rows(build("pair")(prediction, target, kind), expected)
    own = build("pair", aqua_planet={"l1": 2, "mse": 0}, high_res={"l1": 0, "mse": 3})(prediction, target, kind)
    expected = np.where(high, 3 * squared, np.where(kind.numpy() == AQUA_PLANET, 2 * absolute, absolute + 0.08 * squared))
    assert_rows(own, expected)


def test_a_paired_batchs_loss_is_the_sum_of_its_kinds_means(pair):
    prediction, target = pair
    kind = torch.tensor([LOW_RES, HIGH_RES, HIGH_RES, LOW_RES, HIGH_RES])
    loss = build("pair")
    rows, weights = loss(prediction, target, kind), loss.row_weights(ROWS, kind, torch.device("cpu"))
    assert weights.dtype == torch.float32
    expected = rows[kind == LOW_RES].mean() + rows[kind == HIGH_RES].mean()
    torch.testing.assert_close((rows * weights).sum(), expected)
    assert torch.equal(loss.row_weights(4, None, torch.device("cpu")), torch.full((4,), 1 / 4))


@given(st.lists(st.sampled_from([-1e18, -1e9, 0.0, 1e-30, 3.0, 1e18]), min_size=1, max_size=8), st.sampled_from(sorted(MASKS)))
def test_pair_is_finite_and_exact_for_targets_up_to_1e18(extremes, columns):
    target = torch.tensor(extremes).repeat(TARGETS.width)[: TARGETS.width].expand(len(KINDS), -1)
    prediction = torch.zeros(len(KINDS), TARGETS.width, requires_grad=True)
    found = build("pair", columns=columns)(prediction, target, torch.arange(len(KINDS)))
    found.sum().backward()
    error = float64(target)[:, MASKS[columns]]
    weights = np.array([[0.3, 0.0005] if kind == "high-res" else [1, 0.08] for kind in KINDS])
    expected = weights[:, 0] * np.abs(error).mean(1) + weights[:, 1] * (error**2).mean(1)
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-5)
    assert torch.isfinite(prediction.grad).all()


def test_pair_stays_finite_and_growing_beyond(pair):
    loss, prediction = build("pair", columns="all"), torch.zeros(3, TARGETS.width)
    sizes = torch.tensor([1e18, 1e30, 3e38])
    found = loss(prediction, sizes.unsqueeze(1).expand(-1, TARGETS.width), torch.full((3,), HIGH_RES))
    assert torch.isfinite(found).all()
    assert (found.diff() > 0)[1:].all()


@given(st.floats(-1e18, 1e18), st.floats(0.5, 100))
def test_a_soft_clipped_target_goes_on_as_its_logarithm(value, clip):
    size = abs(value)
    expected = np.copysign(size if size <= clip else clip + np.log(1 + size - clip), value)
    softened = build("pair", soft_clip=clip).soften(torch.full((1, TARGETS.width), value))
    np.testing.assert_allclose(softened.numpy(), expected, rtol=1e-5, atol=1e-30)


def test_a_soft_clip_changes_only_what_is_beyond_it(pair):
    prediction, target = pair
    assert torch.equal(build("pair", soft_clip=20)(prediction, target), build("pair")(prediction, target))
    extreme = target.clone()
    extreme[0] = 1e12
    assert build("pair", soft_clip=20)(prediction, extreme)[0] < 400
    assert build("pair")(prediction, extreme)[0] > 1e20


def test_a_saved_loss_is_empty():
    assert build("pair").state_dict() == {}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("hubber", {}, r"training\.loss.*'hubber'.*huber, mae, mse, smooth-l1, pair"),
        ("huber", {"delta": -1}, "delta"),
        ("mse", {"delta": 1}, "delta"),
        ("mae", {"columns": "most"}, "columns.*learned"),
        ("mae", {"scale": 0}, "scale"),
        ("mae", {"vertical_difference": -1}, "vertical_difference"),
        ("pair", {"low_res": {"l1": -1, "mse": 0}}, "l1"),
        ("pair", {"low_res": {"l1": 1}}, "mse.*missing"),
        ("pair", {"soft_clip": 0}, "soft_clip"),
    ],
)
def test_names_what_is_wrong(name, options, message):
    with pytest.raises(UserError, match=message):
        build(name, **options)
