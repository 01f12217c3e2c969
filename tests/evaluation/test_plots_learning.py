import io
import os
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from leapray.climsim.schema import FLUXES
from leapray.evaluation.plots import learning, learning_curve
from tests.columns import TARGETS


def validation(epoch, step, skill, curve=(1.0, 0.5), val_loss=0.75, **by_variable):
    scores = {variable.name: skill for variable in TARGETS.variables} | by_variable
    figures = {"val_loss": val_loss, "score": skill, "skill": skill, "attainable": 0.9, "skill_by_variable": scores}
    figures |= {"r2": -8.6e13, "r2_varying": 0.5, "r2_median": 0.25, "r2_below_zero": 31, "r2_silent": 6}
    return {"event": "validation", "epoch": epoch, "step": step, "loss": float(np.mean(curve)), "loss_curve": list(curve)} | figures


HISTORY = [validation(1, 50, 0.1), validation(1, 100, 0.4), validation(2, 150, 0.3)]


def panels(history):
    figure = learning._figure(history, "")
    losses, scores = figure.axes
    return losses, scores


def line(axes, label):
    """Points of the line whose label ends so."""
    return next(found.get_xydata() for found in axes.lines if found.get_label().endswith(label)).tolist()


def test_a_learning_curve_is_a_picture():
    pixels = matplotlib.image.imread(io.BytesIO(learning_curve([{"event": "step", "step": 1, "loss": 1.0}, *HISTORY], "a run")))
    assert pixels.shape == (576, 1440, 4)
    assert 0.01 < (pixels[..., :3].min(axis=-1) < 0.9).mean() < 0.5


def test_nothing_validated_is_nothing_to_draw():
    with pytest.raises(ValueError, match="at least one validation"):
        learning_curve([{"event": "step", "epoch": 1, "step": 1, "loss": 1.0}])


def test_training_losses_stand_at_the_middle_of_their_steps():
    losses, _ = panels([validation(1, 40, 0.0, curve=[4, 3, 2, 1]), validation(2, 60, 0.0, curve=[0.5])])
    assert line(losses, "training") == [[5, 4], [15, 3], [25, 2], [35, 1], [50, 0.5]]


def test_validation_loss_and_headline_stand_at_their_steps():
    losses, scores = panels(HISTORY)
    assert line(losses, "validation") == [[50, 0.75], [100, 0.75], [150, 0.75]]
    assert line(scores, "  all learned") == [[50, 0.1], [100, 0.4], [150, 0.3]]


def test_the_best_validation_is_marked_and_its_scores_are_told():
    _, scores = panels(HISTORY)
    star = next(found for found in scores.lines if found.get_marker() == "*")
    assert star.get_xydata().tolist() == [[100, 0.4]]
    assert "100" in scores.get_legend().get_title().get_text()
    assert "0.400  ptend_q0003" in [text.get_text() for text in scores.get_legend().get_texts()]


def test_surface_fluxes_are_one_line_their_mean():
    fluxes = {variable.name: index / 10 for index, variable in enumerate(FLUXES)}
    _, scores = panels([validation(1, 10, 0.5, **fluxes)])
    assert line(scores, "surface fluxes") == [[10, pytest.approx(sum(fluxes.values()) / len(fluxes))]]


@pytest.mark.parametrize(("curve", "scale"), [([1.0, 0.5], "linear"), ([20.0, 0.5], "log"), ([20.0, -0.5], "linear")])
def test_losses_of_a_large_span_are_drawn_in_powers_of_ten(curve, scale):
    losses, _ = panels([validation(1, 10, 0.5, curve=curve)])
    assert losses.get_yscale() == scale


def test_r2_and_the_attainable_skill_stand_beside_the_skill():
    _, scores = panels(HISTORY)
    assert next(found for found in scores.lines if "attainable" in found.get_label()).get_ydata()[0] == 0.9
    (words,) = [text.get_text() for text in scores.texts]
    for figure in ("-8.60e+13", "0.500", "0.250", "31 columns", "6 columns"):
        assert figure in words


def test_one_ruined_column_does_not_flatten_the_rest():
    _, scores = panels([validation(1, 10, -300.0, ptend_q0002=-1e6), validation(2, 20, 0.6, ptend_q0002=-2.0)])
    low, high = scores.get_ylim()
    assert -1 < low < 0
    assert 0.6 < high < 1
    below = [(mark.get_color(), mark.get_xydata()[0].tolist()) for mark in scores.lines if mark.get_marker() == "v"]
    assert ("#12263f", [10, 0]) in below
    assert "-300" in [text.get_text() for text in scores.texts]


def test_losses_far_above_are_marked_and_do_not_flatten_the_rest():
    curve = [0.5] * 399 + [1e4]
    losses, _ = panels([validation(1, 400, 0.5, curve, 0.6), validation(2, 800, 0.5, curve, 3e5), validation(3, 1200, 0.5, curve, 0.5)])
    assert losses.get_ylim()[1] < 1
    assert [mark.get_xydata()[0].tolist() for mark in losses.lines if mark.get_marker() == "^"] == [[800, 1]]
    words = [text.get_text() for text in losses.texts]
    assert "3.00e+05" in words
    assert "3 training losses above, up to 10000" in words


def test_epochs_stand_above_the_steps():
    losses, _ = panels(HISTORY)
    above = losses.child_axes[0]
    losses.figure.savefig(io.BytesIO(), format="png")
    low, high = losses.get_xlim()
    assert above.get_xlim() == pytest.approx((low / 100, high / 100))
    assert above.get_xlabel() == "epochs"


def test_axes_say_what_they_show():
    losses, scores = panels(HISTORY)
    assert losses.get_xlabel() == scores.get_xlabel() == "optimizer steps"
    assert "the learned columns" in scores.get_ylabel()


DRAWS = """
from pathlib import Path
from leapray import cli

TITLE = "\u4e2d\u6587 \u0627\u0644\u0646 \u0939\u093f\u0928\u094d\u0926\u0940 \U0001f642"

def verb():
    from leapray.evaluation.plots import learning_curve
    from tests.evaluation.test_plots_learning import HISTORY
    Path("curve.png").write_bytes(learning_curve(HISTORY, TITLE))

cli.app = verb
cli.main()
"""


def test_a_name_in_any_letters_and_a_home_that_is_not_there_give_a_picture_and_no_warning(tmp_path):
    root = str(Path(__file__).parents[2])
    environment = {name: value for name, value in os.environ.items() if name not in {"MPLCONFIGDIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"}}
    environment |= {"HOME": "/dev/null/none", "PYTHONPATH": root, "TMPDIR": str(tmp_path), "LC_ALL": "C"}
    done = subprocess.run([sys.executable, "-c", DRAWS], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert matplotlib.image.imread(tmp_path / "curve.png").shape == (576, 1440, 4)
