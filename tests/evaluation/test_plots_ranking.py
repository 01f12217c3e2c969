import io

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

from leapray.console import digits
from leapray.evaluation.plots import Ranked, ranked, ranking
from leapray.evaluation.plots.style import entitle, png, score_limits, shortened

BASE = Ranked("base", 0.64, (0.63, 0.65), chosen_r2=0.648, is_base=True)
BETTER = Ranked("swa-13", 0.65, (0.64, 0.66), (0.01, 0.008, 0.012), 0.657)
ALIKE = Ranked("continue", 0.641, (0.631, 0.652), (0.001, -0.001, 0.003))
RUINED = Ranked("diverged", -1.2e6, (-3e6, -1e5), (-1.2e6, -3e6, -1e5), 0.1)


def panels(*entries):
    return ranked._figure(entries, "").axes


def dots(axes):
    """Values of all dots by row."""
    found = [line.get_xydata()[0] for line in axes.lines if line.get_marker() == "o" and len(line.get_xydata())]
    return {int(row): value for value, row in found}


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_a_ranking_is_a_picture():
    pixels = matplotlib.image.imread(io.BytesIO(ranking([BASE, BETTER, ALIKE, RUINED], "variants")))
    assert 0.01 < (pixels[..., :3].min(axis=-1) < 0.9).mean() < 0.5


def test_nothing_scored_is_nothing_to_rank():
    with pytest.raises(ValueError, match="at least one entry"):
        ranking([])


def test_the_best_stands_on_top_with_its_value():
    scores, _ = panels(BASE, ALIKE, BETTER)
    assert [label.get_text() for label in scores.get_yticklabels()] == ["swa-13", "continue", "base"]
    assert dots(scores) == {0: 0.65, 1: 0.641, 2: 0.64}
    assert texts(scores) == ["0.650", "0.641", "0.640"]
    assert scores.get_ylim()[0] > scores.get_ylim()[1]


def test_intervals_and_the_validation_that_chose_are_drawn():
    scores, _ = panels(BASE, BETTER)
    bars = [line.get_xdata() for line in scores.lines if line.get_marker() == "|"]
    assert [tuple(bar) for bar in bars] == [(0.64, 0.66), (0.63, 0.65)]
    hollow = [line.get_xydata().tolist() for line in scores.lines if line.get_marker() == "D"]
    assert hollow == [[[0.657, 0]], [[0.648, 1]]]
    assert "95% interval" in scores.get_legend().get_texts()[0].get_text()


def test_differences_are_from_the_base_and_those_that_hold_zero_are_pale():
    _, differences = panels(BASE, BETTER, ALIKE)
    assert dots(differences) == {0: 0.01, 1: 0.001}
    assert texts(differences) == ["+0.0100  [+0.00800, +0.0120]", "+0.00100  [-0.00100, +0.00300]", "base"]
    strong, pale = (line.get_color() for line in differences.lines if line.get_marker() == "o")
    assert strong != pale
    low, high = differences.get_xlim()
    assert low < -0.001
    assert high > 0.012


def test_without_differences_there_is_one_panel():
    assert len(panels(BASE, Ranked("other", 0.7))) == 1


def test_a_ruined_score_is_an_arrow_and_a_value_and_flattens_nothing():
    scores, differences = panels(BASE, BETTER, ALIKE, RUINED)
    for axes in (scores, differences):
        arrows = [line.get_xydata()[0].tolist()[1] for line in axes.lines if line.get_marker() == "<"]
        assert arrows == [3]
        assert np.ptp(axes.get_xlim()) < 0.1
    assert texts(scores)[-1] == "-1.20e+06"


@pytest.mark.parametrize(("value", "marker"), [(8.6e13, ">"), (-2e5, "<")])
def test_a_difference_beyond_all_scales_is_an_arrow_and_flattens_nothing(value, marker):
    _, differences = panels(BASE, BETTER, ALIKE, Ranked("far", 0.64, None, (value, value, value)))
    assert np.ptp(differences.get_xlim()) < 0.1
    assert [line.get_marker() for line in differences.lines if line.get_marker() in ("<", ">")] == [marker]
    assert any(text.startswith(digits(value, "+")) for text in texts(differences))
    # what is written beside it stays within the picture
    differences.figure.canvas.draw()
    assert max(text.get_window_extent().x1 for text in differences.texts) <= differences.figure.bbox.x1


@pytest.mark.parametrize(
    "entries", [[BASE], [Ranked("a", 0.5), Ranked("b", 0.5)], [Ranked("lost", float("nan"), is_base=True)], [BASE, RUINED]]
)
def test_one_equal_ruined_and_no_number_are_drawn(entries):
    assert ranking(entries).startswith(b"\x89PNG")


def test_a_long_name_loses_its_middle():
    assert shortened("a" * 30 + "b" * 30, 21) == "a" * 10 + "…" + "b" * 10
    assert shortened("short", 21) == "short"


def test_scores_are_written_to_be_compared():
    assert [digits(value) for value in (0.64123, -3.0, -1.234e6, 1e12)] == ["0.641", "-3.00", "-1.23e+06", "1.00e+12"]
    assert digits(0.01, "+") == "+0.0100"


@pytest.mark.parametrize(
    ("scores", "low", "high"),
    [
        ([0.65, 0.64, 0.63], 0.62, 0.66),
        ([0.65, 0.64, 0.63, -1e6], 0.62, 0.66),
        ([0.65, -1e6, -2e6], 0.63, 0.67),
        ([0.5], 0.49, 0.51),
        ([-300.0, -1e6], -301, -299),
        ([float("nan"), 0.5], 0.49, 0.51),
    ],
)
def test_an_axis_shows_the_best_and_leaves_out_the_ruined(scores, low, high):
    found = score_limits(scores)
    assert low < found[0] < max(np.nan_to_num(scores, nan=-np.inf)) < found[1] < high


def test_ends_of_intervals_widen_an_axis_within_reason():
    assert score_limits([0.65, 0.64], [0.61])[0] < 0.61
    assert score_limits([0.65, 0.64], [-5.0])[0] > 0.6


def test_a_title_is_shown_letter_by_letter():
    figure = Figure()
    entitle(figure, r"x$\bad$", 0.1)
    assert png(figure)
