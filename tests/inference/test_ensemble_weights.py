import numpy as np
import pytest

from leapray.console import digits
from leapray.evaluation.metrics import TargetStatistics
from leapray.inference.ensemble.choosing import choose
from leapray.inference.ensemble.members import Candidate
from leapray.inference.ensemble.products import ErrorProducts
from leapray.inference.ensemble.table import show
from leapray.inference.weights import Weights
from leapray.recipe import Ensemble
from leapray.recipe.ensemble import Weighing
from tests.columns import GROUPS, LEARNED, TARGETS, group_mask
from tests.target_statistics import UNIT

NAMES = ("swa", "ema", "old")
MEMBERS = [Candidate(name) for name in NAMES]


def settings(weights: str | dict = "solved", groups: str = "auto") -> Ensemble:
    return Ensemble.model_validate({"directory": "d", "members": ["m"], "weights": weights, "groups": groups})


def halves(seed: int = 0) -> tuple[ErrorProducts, ErrorProducts]:
    """Two halves of rows on which the third member is the best in wind and the worst elsewhere."""
    generator = np.random.default_rng(seed)
    spread = np.full((3, 1, TARGETS.width), 0.5)
    spread[2] = np.where(group_mask("wind"), 0.2, 1.5)
    truth = generator.normal(size=(2, 300, TARGETS.width))
    predictions = truth[:, None] + spread * generator.normal(size=(2, 3, 300, TARGETS.width))
    return ErrorProducts.of(truth[0], predictions[0], UNIT), ErrorProducts.of(truth[1], predictions[1], UNIT)


def skill(weights: Weights) -> float:
    first, second = halves()
    return (first + second).skill(weights.matrix())


def test_auto_takes_groups_where_they_do_better_on_days_held_out() -> None:
    auto, one, groups = (choose(settings(groups=name), MEMBERS, halves(), TARGETS) for name in ("auto", "one", "by-variable"))
    assert auto.groups == GROUPS
    np.testing.assert_array_equal(auto.matrix(), groups.matrix())
    assert skill(auto) > skill(one) > auto.figures["blend"]["mean"]
    tried = auto.figures["blend"]["groups"]["held_out"]
    assert tried["by-variable"] > tried["one"]
    assert set(one.groups) == {"all"}


def test_rows_without_days_are_weighed_as_one_group() -> None:
    first, second = halves()
    weights = choose(settings(), MEMBERS, (ErrorProducts.empty(3, UNIT), first + second), TARGETS)
    assert set(weights.groups) == {"all"}
    assert weights.figures["blend"]["groups"] == {
        "held_out": None,
        "why": "the months hold too few days, or rows that tell none, to hold some out",
    }


@pytest.mark.parametrize("weights", ["solved", "mean", {"fixed": {"swa": 0.5, "old": 0.5}}])
def test_the_worth_of_a_member_is_what_the_others_score_alone_less_what_all_do(weights: str | dict) -> None:
    asked = settings(weights, "by-variable")
    whole = choose(asked, MEMBERS, halves(), TARGETS)
    first, second = (half.of_members([0, 2]) for half in halves())
    alone = {"fixed": {"swa": 0.5, "old": 0.5}} if isinstance(weights, dict) else weights
    without = choose(settings(alone, "by-variable"), [MEMBERS[0], MEMBERS[2]], (first, second), TARGETS)
    found = whole.figures["blend"]
    assert found["worth"]["ema"] == pytest.approx(without.figures["blend"]["ensemble"] - found["ensemble"], abs=1e-12)
    if weights == "solved":
        assert max(found["worth"].values()) <= 1e-9


def test_given_weights_are_those_of_the_names_and_need_no_months() -> None:
    weights = choose(settings({"fixed": {"old": 0.25, "swa": 0.75}}), MEMBERS, None, TARGETS)
    np.testing.assert_array_equal(weights.matrix(), np.repeat([[0.75], [0], [0.25]], TARGETS.width, axis=1))
    assert weights.figures == {}
    np.testing.assert_allclose(choose(settings("mean"), MEMBERS, None, TARGETS).matrix(), 1 / 3)


def test_a_single_member_has_all_the_weight_and_no_worth_to_tell() -> None:
    first, second = (half.of_members([1]) for half in halves())
    weights = choose(settings(), MEMBERS[1:2], (first, second), TARGETS)
    np.testing.assert_array_equal(weights.matrix(), np.ones((1, TARGETS.width)))
    assert weights.figures["blend"]["worth"] == {"ema": None}
    assert weights.figures["blend"]["correlation"] == [[1.0]]


def test_the_table_has_every_member_with_its_weights_and_scores(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("leapray.console.terminal.console.width", 160, raising=False)
    weights = choose(settings(groups="one"), MEMBERS, halves(), TARGETS)
    show(weights)
    lines = capsys.readouterr().out.splitlines()
    for member in weights.members:
        line = next(line.split() for line in lines if line.split()[:1] == [member.name])
        assert line[1:3] == [f"{member.weights['all']:.3f}", digits(weights.figures["blend"]["members"][member.name])]
    assert any(digits(weights.figures["blend"]["ensemble"]) in line for line in lines if line.split()[:1] == ["ensemble"])


def of_columns(good: np.ndarray) -> tuple[ErrorProducts, ErrorProducts]:
    """Two halves of rows on which two members are good in some columns ``(368,)`` and far worse than the mean in the others."""
    generator = np.random.default_rng(3)
    truth = generator.normal(size=(2, 300, TARGETS.width))
    predictions = truth[:, None] + np.where(good, 0.5, 3.0) * generator.normal(size=(2, 2, 300, TARGETS.width))
    return ErrorProducts.of(truth[0], predictions[0], KNOWN), ErrorProducts.of(truth[1], predictions[1], KNOWN)


KNOWN = TargetStatistics(TARGETS, np.linspace(-0.1, 0.1, TARGETS.width), np.ones(TARGETS.width), "known")


def test_a_column_that_no_member_predicts_better_than_the_training_mean_falls_back_to_it(capsys: pytest.CaptureFixture[str]) -> None:
    good = ~TARGETS.mask(["ptend_u"], range(20, 24))
    weights = choose(settings(), MEMBERS[:2], of_columns(good), TARGETS)
    lost = [f"ptend_u_{level}" for level in range(20, 24)]
    assert weights.fallback == {name: KNOWN.mean[TARGETS.columns.index(name)] for name in lost}
    blend = weights.figures["blend"]
    # with the mean in the four columns, of skill 0, instead of what all members lose there
    assert blend["ensemble"] > max(blend["members"].values())
    show(weights)
    out = capsys.readouterr().out.replace("\n", " ")
    assert all(name in out for name in lost)
    assert choose(settings("mean"), MEMBERS[:2], of_columns(good), TARGETS).fallback == {}


def test_the_ensemble_is_at_least_its_best_member_where_the_bound_of_skill_counts() -> None:
    generator = np.random.default_rng(0)
    truth = generator.normal(size=(2, 400, TARGETS.width))
    # the first is better where it counts; the second only loses less in columns that are below -1 for both
    ruined = group_mask("cloud")
    spread = np.array([np.where(ruined, 30.0, 0.5), np.where(ruined, 3.0, 0.8)])[:, None]
    predictions = truth[:, None] + spread * generator.normal(size=(2, 2, 400, TARGETS.width))
    # one column each in which the other member is good, so that none falls back
    predictions[:, 0][..., ruined][:, :, ::2] = truth[..., ruined][..., ::2]
    found = tuple(ErrorProducts.of(y, f, UNIT) for y, f in zip(truth, predictions, strict=True))
    weights = choose(settings(groups="one"), MEMBERS[:2], found, TARGETS)
    blend = weights.figures["blend"]
    assert blend["ensemble"] >= max(blend["members"].values()) - 1e-12


def test_silent_columns_do_not_decide_the_weights() -> None:
    generator = np.random.default_rng(1)
    truth = generator.normal(size=(2, 300, TARGETS.width))
    silent = TARGETS.mask(["ptend_q0003"], range(13, 15))
    truth[..., silent] *= 1e-9
    spread = np.array([np.where(silent, 1e-3, 0.3), np.where(silent, 1e-5, 0.9)])[:, None]
    predictions = truth[:, None] + spread * generator.normal(size=(2, 2, 300, TARGETS.width))
    found = tuple(ErrorProducts.of(y, f, UNIT) for y, f in zip(truth, predictions, strict=True))
    weights = choose(settings(groups="one"), MEMBERS[:2], found, TARGETS)
    # by R2 the second, whose error is a million times smaller there, would take all
    assert weights.members[0].weights["all"] == pytest.approx(0.9, abs=0.01)


def test_methods_are_named_as_the_recipe_names_them() -> None:
    assert choose(settings("mean"), MEMBERS, None, TARGETS).method == Weighing(method="mean").method
    assert LEARNED.sum() == sum(group_mask(group).sum() for group in GROUPS)
