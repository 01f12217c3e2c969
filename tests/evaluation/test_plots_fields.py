import itertools
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest

from leapray.climsim.grid import pressure
from leapray.console import digits
from leapray.evaluation.plots import latitude, levels, rain, surface
from leapray.evaluation.plots.levels import Curve
from leapray.evaluation.plots.quantity import profiles, scalars
from leapray.evaluation.plots.style import LINES, svg
from leapray.evaluation.results import Joint, Precipitation, Zonal
from tests.columns import EXACT_LEVELS, LEARNED, TARGETS

PROFILES, SCALARS = profiles(TARGETS), scalars(TARGETS)
RANDOM = np.random.default_rng(0)
R2 = RANDOM.uniform(0.2, 1, TARGETS.width)


def drawn(axes):
    """The lines of values by level, without those that mark a place."""
    return [found for found in axes.lines if len(found.get_xdata()) == 60]


def test_every_target_variable_is_shown_in_its_own_unit():
    assert [quantity.name for quantity in (*PROFILES, *SCALARS)] == [variable.name for variable in TARGETS.variables]
    units = {quantity.name: (quantity.unit, quantity.factor) for quantity in (*PROFILES, *SCALARS)}
    assert units["ptend_t"] == ("K/day", 86400)
    assert units["ptend_q0002"] == ("g/kg/day", 86400 * 1e3)
    assert units["cam_out_PRECC"] == ("mm/day", 86400 * 1e3)
    assert units["cam_out_FLWDS"] == ("W/m²", 1)


def test_skill_is_drawn_level_by_level_where_it_is_learned():
    figure = levels._score_figure(TARGETS, [Curve("ours", R2), Curve("other", R2 - 0.1)], "R²")
    temperature, _, liquid, *_ = figure.axes
    np.testing.assert_array_equal(drawn(temperature)[0].get_xdata(), R2[:60])
    np.testing.assert_array_equal(drawn(temperature)[1].get_xdata(), R2[:60] - 0.1)
    shown = drawn(liquid)[0].get_xdata()
    assert np.isnan(shown[: EXACT_LEVELS.stop]).all()
    np.testing.assert_array_equal(shown[EXACT_LEVELS.stop :], R2[TARGETS["ptend_q0002"]][EXACT_LEVELS.stop :])


def test_the_pressure_axis_runs_down_and_its_marks_stand_at_their_levels():
    axes = levels._score_figure(TARGETS, [Curve("ours", R2)], "skill", R2).axes[0]
    low, high = axes.get_ylim()
    assert low > high
    at = dict(zip([text.get_text() for text in axes.get_yticklabels()], axes.get_yticks(), strict=True))
    hpa = pressure(np.array([1e5]))[0] / 100
    for mark, place in at.items():
        if float(mark) < hpa[-1]:
            assert np.interp(place, np.arange(60), hpa) == pytest.approx(float(mark))
    assert "hPa" in axes.get_ylabel()


def test_levels_far_below_are_counted_and_do_not_stretch_the_axis():
    poor = R2.copy()
    poor[TARGETS["ptend_u"].start + 40 : TARGETS["ptend_u"].start + 43] = -1e4
    axes = levels._score_figure(TARGETS, [Curve("ours", poor)], "R²").axes[4]
    assert axes.get_xlim()[0] == -0.5
    assert [text.get_text() for text in axes.texts] == ["3 below -0.5, down to -10000"]
    assert [mark.get_ydata().tolist() for mark in axes.lines if mark.get_marker() == "<"] == [[40, 41, 42]]
    assert np.isnan(drawn(axes)[0].get_xdata()[40:43]).all()


def test_a_mean_and_its_bias_are_drawn_in_the_shown_unit():
    truth, bias = RANDOM.normal(size=(2, TARGETS.width)) * 1e-5
    figure = levels._bias_figure(TARGETS, truth, [Curve("ours", bias), Curve("other", -bias)])
    above, below = figure.axes[0], figure.axes[6]
    np.testing.assert_allclose(drawn(above)[0].get_xdata(), truth[:60] * 86400)
    np.testing.assert_allclose(drawn(above)[1].get_xdata(), (truth + bias)[:60] * 86400)
    np.testing.assert_allclose(drawn(below)[1].get_xdata(), -bias[:60] * 86400)
    assert below.get_xlabel() == "bias dT/dt (K/day)"


def test_a_difference_has_its_band_about_an_axis_of_both_signs():
    value = RANDOM.normal(size=TARGETS.width) * 0.01
    axes = levels._difference_figure(TARGETS, Curve("B less A", value, np.stack([value - 0.02, value + 0.02]))).axes[0]
    np.testing.assert_array_equal(drawn(axes)[0].get_xdata(), value[:60])
    low, high = axes.get_xlim()
    assert low == -high
    band = axes.collections[0].get_paths()[0].vertices
    assert band[:, 0].max() == pytest.approx(value[:60].max() + 0.02)


def test_a_difference_beyond_the_axis_is_marked_at_its_edge():
    value = np.full(TARGETS.width, 0.01)
    value[[30, 40]] = [-5.0, 3.0]
    axes = levels._difference_figure(TARGETS, Curve("B less A", value)).axes[0]
    assert max(axes.get_xlim()) < 0.1
    marks = {line.get_marker(): line.get_ydata().tolist() for line in axes.lines if line.get_marker() in ("<", ">")}
    assert marks == {"<": [30], ">": [40]}


def test_lines_that_could_not_be_told_apart_are_refused():
    curves = [Curve(str(index), R2) for index in range(len(LINES) + 1)]
    for draw in (
        lambda: levels.skill_profiles(TARGETS, curves, R2),
        lambda: levels.r2_profiles(TARGETS, curves),
        lambda: surface.scalar_bars(TARGETS, curves, R2),
    ):
        with pytest.raises(ValueError, match="told apart"):
            draw()


def test_the_attainable_skill_is_a_line_of_its_own():
    attainable = np.clip(R2 + 0.1, 0, 1)
    figure = levels._score_figure(TARGETS, [Curve("ours", R2), Curve("other", R2 - 0.1)], "skill", attainable)
    np.testing.assert_array_equal(drawn(figure.axes[0])[0].get_xdata(), attainable[:60])
    np.testing.assert_array_equal(drawn(figure.axes[0])[1].get_xdata(), R2[:60])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["ours", "other", "attainable"]
    assert figure.axes[0].get_xlabel() == "skill of dT/dt"


def test_names_are_drawn_letter_by_letter():
    names = [r"$\nonsense$", "_hidden", "a$b"]
    figure = levels._score_figure(TARGETS, [Curve(name, R2) for name in names], "R²")
    assert ElementTree.fromstring(svg(figure)) is not None
    assert len(figure.legends[0].get_texts()) == len(names)


def zonal():
    edges = np.linspace(-90, 90, 19)
    r2, truth, bias = RANDOM.uniform(-0.5, 1, (3, 18, TARGETS.width))
    r2[0] = np.nan
    return Zonal(edges, r2, truth, bias * 1e-5)


def test_skill_maps_lie_between_sines_of_latitude_and_are_read_from_0_to_1():
    found = zonal()
    figure = latitude._skill_figure(TARGETS, found)
    vapour = figure.axes[1]
    mesh = vapour.collections[0]
    shown = np.ma.filled(mesh.get_array(), np.nan)
    expected = np.where(LEARNED[60:120], found.r2[:, 60:120], np.nan).T
    np.testing.assert_array_equal(shown, expected)
    assert mesh.get_clim() == (0, 1)
    np.testing.assert_allclose(mesh.get_coordinates()[0, :, 0], np.sin(np.radians(found.edges)))
    assert mesh.get_coordinates()[-1, 0, 1] == pytest.approx(1000)
    assert vapour.get_ylim() == (1000, 0)


def test_bias_maps_are_even_about_0_and_dot_what_is_notably_negative():
    found = zonal()
    temperature = latitude._bias_figure(TARGETS, found).axes[0]
    low, high = temperature.collections[0].get_clim()
    assert low == -high
    dots = temperature.lines[0].get_xydata()
    assert len(dots) == (found.bias[:, :60] * 86400 < -0.25 * high).sum()


def test_maps_without_any_number_are_drawn():
    nothing = np.full((18, TARGETS.width), np.nan)
    empty = Zonal(np.linspace(-90, 90, 19), nothing, nothing, nothing)
    for draw, save in ((latitude._skill_figure, latitude.zonal_skill), (latitude._bias_figure, latitude.zonal_bias)):
        shown = np.ma.filled(draw(TARGETS, empty).axes[0].collections[0].get_array(), np.nan)
        assert shown.size
        assert np.isnan(shown).all()
        assert save(TARGETS, empty)


def test_maps_of_too_few_days_say_so_and_have_no_colour_bar():
    found = zonal()
    assert len(latitude._skill_figure(TARGETS, found).axes) == 7
    assert not [text for text in latitude._skill_figure(TARGETS, found).axes[0].texts if "days" in text.get_text()]
    panels = latitude._skill_figure(TARGETS, replace(found, r2=np.full_like(found.r2, np.nan))).axes
    assert len(panels) == 6
    assert all("fewer than 10 days" in axes.texts[0].get_text() for axes in panels)


@pytest.mark.parametrize("make", [lambda: latitude._bias_figure(TARGETS, zonal()), lambda: latitude._skill_figure(TARGETS, zonal())])
def test_no_words_of_a_map_lie_on_others(make):
    figure = make()
    figure.canvas.draw()
    boxes = []
    for axes in figure.axes:
        words = [axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label, *axes.get_xticklabels(), *axes.get_yticklabels()]
        boxes += [text.get_window_extent() for text in words if text.get_text() and text.get_visible()]
    inside = [box for box in boxes if box.width > 0 and figure.bbox.contains(*box.min) and figure.bbox.contains(*box.max)]
    for first, second in itertools.combinations(inside, 2):
        overlap = min(first.x1, second.x1) - max(first.x0, second.x0), min(first.y1, second.y1) - max(first.y0, second.y0)
        assert min(overlap) <= 2, (first, second)


def test_bars_are_as_long_as_the_r2_that_stands_beside_them():
    r2 = R2.copy()
    r2[-1] = -7.0
    axes = surface._bar_figure(TARGETS, [Curve("ours", r2), Curve("other", R2)], np.ones(TARGETS.width)).axes[0]
    lengths = [bar.get_width() for bar in axes.patches]
    np.testing.assert_allclose(lengths, [*r2[-8:-1], -0.5, *R2[-8:]])
    assert [text.get_text() for text in axes.texts] == [digits(value) for value in (*r2[-8:], *R2[-8:])]


def test_joint_densities_have_the_truth_along_x_and_rain_on_logarithmic_axes():
    even, powers = np.linspace(0, 10, 6), np.append(0, np.geomspace(1e-10, 1e-6, 5))
    edges = np.stack([powers if quantity.unit == "mm/day" else even for quantity in SCALARS])
    counts = RANDOM.integers(0, 50, (len(SCALARS), 5, 5))
    panels = surface._joint_figure(TARGETS, Joint(edges, counts)).axes
    for axes, quantity, expected in zip(panels, SCALARS, counts, strict=False):
        shown = np.ma.filled(axes.collections[0].get_array(), 0)
        np.testing.assert_array_equal(shown, expected.T)
        assert axes.get_xscale() == axes.get_yscale() == ("log" if quantity.unit == "mm/day" else "linear")
        assert quantity.unit in axes.get_xlabel()
        assert "truth" in axes.get_xlabel()
    for axes in surface._joint_figure(TARGETS, Joint(edges, np.zeros_like(counts))).axes[: len(SCALARS)]:
        assert not axes.collections


def test_densities_of_rain_and_what_is_dry_make_up_all_rows():
    edges = np.append(0, np.geomspace(0.01, 100, 9))
    truth, prediction = RANDOM.integers(1, 100, (2, 9))
    moistening = RANDOM.normal(size=(9, 2))
    left, right = rain._figure([("ours", Precipitation(edges, truth, prediction, moistening))]).axes
    middles, density = left.lines[1].get_data()
    np.testing.assert_allclose(middles, np.sqrt(edges[1:-1] * edges[2:]))
    assert (density * np.diff(edges[1:])).sum() + prediction[0] / prediction.sum() == pytest.approx(1)
    assert left.get_legend().get_texts()[1].get_text() == f"ours: {prediction[0] / prediction.sum():.1%} below 0.01 mm/day"
    np.testing.assert_array_equal(right.lines[0].get_ydata(), moistening[1:, 0])
    np.testing.assert_array_equal(right.lines[1].get_ydata(), moistening[1:, 1])
    assert left.get_xscale() == left.get_yscale() == "log"
    with pytest.raises(ValueError, match="at least one"):
        rain.precipitation([])
