import numpy as np
import pytest

from leapray.evaluation.plots.ensemble import _figure

NAMES = ["low_res_aqua", "swa", "ema"]
CORRELATION = [[1.0, 0.8, 0.7], [0.8, 1.0, 0.9], [0.7, 0.9, 1.0]]


@pytest.mark.parametrize("groups", [["all"], ["temperature", "vapour", "cloud", "wind", "surface"]])
def test_every_weight_is_a_bar_beside_its_member_and_every_correlation_a_cell(groups: list[str]) -> None:
    weights = {group: np.random.default_rng(index).dirichlet(np.ones(3)).tolist() for index, group in enumerate(groups)}
    bars, cells = _figure(NAMES, weights, CORRELATION, "title").axes
    drawn = [patch for container in bars.containers for patch in container.patches]
    assert sorted(round(bar.get_width(), 12) for bar in drawn) == sorted(round(v, 12) for values in weights.values() for v in values)
    for bar, place in zip(drawn, [index for _ in groups for index in range(3)], strict=True):
        assert abs(bar.get_y() + bar.get_height() / 2 - place) < 0.5
    assert [label.get_text() for label in bars.get_yticklabels()] == NAMES
    assert bars.get_xlabel() == "weight (sum 1)"
    np.testing.assert_array_equal(cells.images[0].get_array(), CORRELATION)
    assert [text.get_text() for text in cells.texts] == [f"{value:.2f}" for row in CORRELATION for value in row]


def test_without_correlations_there_are_weights_alone() -> None:
    assert len(_figure(NAMES, {"all": [0.2, 0.3, 0.5]}, None, "").axes) == 1
    assert len(_figure(["only"], {"all": [1.0]}, [[1.0]], "").axes) == 2
