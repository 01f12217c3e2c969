import io
import math

import matplotlib.image
import numpy as np
import pytest

from leapray.evaluation.plots import Tried, best_so_far, parallel, parallel_coordinates, progress
from leapray.evaluation.plots.searched import searched, short_names

TRIALS = [
    Tried({"training.optimizer.options.lr": 1e-4, "network.width": 128, "training.loss.name": "huber"}, 0.5),
    Tried({"training.optimizer.options.lr": 1e-3, "network.width": 256, "training.loss.name": "mae"}, 0.6),
    Tried({"training.optimizer.options.lr": 1e-2, "network.width": 512, "training.loss.name": "huber"}, 0.3, stopped=True),
    Tried({"training.optimizer.options.lr": 5e-2, "network.width": 384, "training.loss.name": "mse"}, -1e6, stopped=True),
    Tried({"training.optimizer.options.lr": 2e-4, "network.width": 128, "training.loss.name": "mse"}, None),
]


def axis(values):
    """The axis of one searched key."""
    (found,) = searched([Tried({"key": value}, 0.5) for value in values])
    return found


def lines(axes, label):
    return [line for line in axes.lines if line.get_label() == label]


@pytest.mark.parametrize("draw", [parallel_coordinates, best_so_far])
def test_trials_are_a_picture(draw):
    pixels = matplotlib.image.imread(io.BytesIO(draw(TRIALS, "a sweep")))
    assert 0.01 < (pixels[..., :3].min(axis=-1) < 0.9).mean() < 0.5


@pytest.mark.parametrize("draw", [parallel_coordinates, best_so_far])
@pytest.mark.parametrize("trials", [TRIALS[:1], [TRIALS[0]] * 3, [TRIALS[3]], [TRIALS[4], TRIALS[0]]])
def test_one_equal_ruined_and_unscored_trials_are_drawn(draw, trials):
    assert draw(trials).startswith(b"\x89PNG")


@pytest.mark.parametrize("draw", [parallel_coordinates, best_so_far])
@pytest.mark.parametrize("trials", [[], [TRIALS[4]], [Tried({"a": 1}, math.nan)]])
def test_without_an_r2_there_is_nothing_to_draw(draw, trials):
    with pytest.raises(ValueError, match="at least one with a validation R2"):
        draw(trials)


def test_names_are_as_short_as_they_can_be_told_apart():
    keys = ["training.optimizer.options.lr", "network.options.width", "training.loss.name", "data.seed", "training.seed", "seed"]
    assert list(short_names(keys).values()) == ["lr", "width", "loss.name", "data.seed", "training.seed", "seed"]
    assert short_names(["a.b.lr", "c.b.lr"]) == {"a.b.lr": "a.b.lr", "c.b.lr": "c.b.lr"}


def test_long_names_are_broken_after_dots_and_underscores():
    assert short_names(["x.a_rather_long_name_of_a_key"])["x.a_rather_long_name_of_a_key"] == "a_rather_long_\nname_of_a_key"


def test_numbers_stand_evenly_and_those_of_a_large_span_by_powers_of_ten():
    assert axis([1.0, 2.0, 3.0]).heights == pytest.approx([0, 0.5, 1])
    assert axis([1e-4, 1e-2, 1e-3]).heights == pytest.approx([0, 1, 0.5])
    assert axis([0.0, 50.0, 100.0]).heights == pytest.approx([0, 0.5, 1])
    assert axis([7, 7]).heights == [0.5, 0.5]


def test_categories_are_spread_evenly_in_their_order():
    found = axis(["mae", "huber", "mse", "mae"])
    assert found.heights == [0.5, 0, 1, 0.5]
    assert found.ticks == [(0, "huber"), (0.5, "mae"), (1, "mse")]
    assert axis([True, False]).ticks == [(0, "false"), (1, "true")]
    assert axis([1, None, "x"]).texts == ["1", "none", "x"]


def test_few_numbers_are_ticks_themselves_and_many_have_round_ones():
    assert [text for _, text in axis([128, 512, 256, 128]).ticks] == ["128", "256", "512"]
    many = axis(np.linspace(0.03, 0.39, 17).tolist())
    assert [text for _, text in many.ticks] == ["0.1", "0.2", "0.3"]
    powers = axis(np.geomspace(1.5e-5, 2e-1, 9).tolist())
    assert [text for _, text in powers.ticks] == ["1e-4", "0.001", "0.01", "0.1"]


def test_ticks_stand_where_their_numbers_would():
    values = np.geomspace(1.5e-5, 2e-1, 9)
    found = axis(values.tolist())
    expected = np.interp(np.log([1e-4, 1e-3, 1e-2, 1e-1]), np.log(values), found.heights)
    assert [height for height, _ in found.ticks] == pytest.approx(expected.tolist())


def test_a_key_that_a_trial_does_not_have_is_a_gap():
    first, second = searched([Tried({"a": 1, "b": 5}, 0.5), Tried({"a": 2}, 0.6)])
    assert first.heights == [0, 1]
    assert second.heights[0] == 0.5
    assert math.isnan(second.heights[1])


def test_every_trial_is_a_line_in_the_manner_of_its_state_and_the_best_is_bold():
    axes = parallel._figure(TRIALS, "").axes[0]
    (best,), (finished,), (unscored,) = (lines(axes, state) for state in ("best", "finished", "no validation"))
    assert len(lines(axes, "stopped early")) == 2
    assert best.get_linewidth() > finished.get_linewidth() > unscored.get_linewidth()
    assert lines(axes, "stopped early")[0].get_linestyle() == "--"
    assert best.get_zorder() >= finished.get_zorder()
    assert axes.lines.index(best) > axes.lines.index(finished)
    words = [text.get_text() for text in axes.texts if text.get_fontweight() == "bold"]
    assert words == ["0.001", "256", "mae", "0.600"]


def test_r2_is_the_last_axis_and_a_ruined_one_stands_at_its_foot():
    axes = parallel._figure(TRIALS, "").axes[0]
    (best,), (finished,), (unscored,) = (lines(axes, state) for state in ("best", "finished", "no validation"))
    ends = sorted(line.get_ydata()[-1] for line in lines(axes, "stopped early"))
    assert ends[0] == 0
    assert 0 < ends[1] < finished.get_ydata()[-1] < best.get_ydata()[-1] < 1
    assert math.isnan(unscored.get_ydata()[-1])
    assert "below" in [text.get_text() for text in axes.texts]


def test_the_best_so_far_rises_in_the_order_of_ending():
    axes = progress._figure(TRIALS, "").axes[0]
    (running,) = lines(axes, "best so far")
    assert running.get_xydata().tolist() == [[1, 0.5], [2, 0.6], [3, 0.6], [4, 0.6], [5, 0.6]]
    assert running.get_drawstyle() == "steps-post"


def test_nothing_is_best_before_the_first_r2():
    axes = progress._figure([TRIALS[4], TRIALS[0]], "").axes[0]
    assert lines(axes, "best so far")[0].get_xydata().tolist() == [[2, 0.5]]


def test_each_trial_has_a_mark_that_tells_how_it_ended():
    axes = progress._figure(TRIALS, "").axes[0]
    marks = {line.get_label(): (line.get_xdata().tolist(), line.get_marker()) for line in axes.lines if "(" in line.get_label()}
    assert marks == {
        "finished (2)": ([1, 2], "o"),
        "stopped early (1)": ([3], "o"),
        "below the axis (1)": ([4], "v"),
        "no validation (1)": ([5], "x"),
    }
    assert lines(axes, "stopped early (1)")[0].get_markerfacecolor() == "white"
    assert axes.get_ylim()[0] > -1
