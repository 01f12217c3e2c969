import base64
import io
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import html5lib
import matplotlib.image
import numpy as np
import pytest
from sklearn.metrics import r2_score

from leapray.console import digits
from leapray.errors import UserError
from leapray.evaluation.comparison import compare_evaluations
from leapray.evaluation.intervals import TimedMoments, interval
from leapray.evaluation.metrics import TargetStatistics
from leapray.evaluation.report import Material, compare_report, write_report
from leapray.evaluation.report.page import Cell, counted, figure, score
from leapray.evaluation.summary import deciding_columns
from leapray.evaluation.worst import worst_columns
from tests.columns import LEARNED, SCORED, TARGETS
from tests.made_evaluations import made_evaluation, made_rows

HOSTILE = '</td><script>alert("1")</script> & "$x$" \'_\' <b>'
SKILLS = {"ridge": 0.4, "swa": 0.9, HOSTILE: 0.7}


def history() -> list[dict]:
    by_variable = {variable.name: 0.3 for variable in TARGETS.variables}
    return [
        {"event": "validation", "epoch": 1, "step": 50 * n, "loss_curve": [0.5], "val_loss": 0.4, "score": 0.1 * n, "skill": 0.1 * n}
        | {"attainable": 0.9, "r2": -5.0, "r2_median": 0.1, "r2_below_zero": 3, "r2_silent": 0, "seconds": 2.0}
        | {"skill_by_variable": by_variable}
        for n in (1, 2)
    ]


def variant(name: str, skill: float, **changes) -> dict:
    ends = {"low": skill - 0.01, "high": skill + 0.01, "level": 0.95}
    known = {"name": name, "state": "finished", "cause": "", "interval": ends, "difference": None}
    known |= {"validation_skill": skill, "test_skill": skill, "validation_r2": -1.0, "test_r2": -2.0}
    return known | {"epochs": 3, "seconds": 12.0} | changes


ENSEMBLE = {
    "method": "solved",
    "groups": {"temperature": ["ptend_t"], "others": ["..."]},
    "members": [
        {"name": "swa", "model": None, "weights": {"temperature": 0.625, "others": 0.5}},
        {"name": HOSTILE, "model": None, "weights": {"temperature": 0.375, "others": 0.5}},
    ],
    "figures": {
        "blend": {
            "rows": 4608,
            "members": {HOSTILE: 0.51, "swa": 0.53},
            "mean": 0.54,
            "ensemble": 0.55,
            "worth": {HOSTILE: -0.02, "swa": None},
            "correlation": [[1, 0.9], [0.9, 1]],
            "groups": {"held_out": None, "why": "Groups win on held-out days."},
        }
    },
}
MATERIAL = Material(
    title=f"Evaluation of {HOSTILE}",
    runs={HOSTILE: history(), "never validated": [{"event": "step", "step": 1, "loss": 1.0}]},
    variants={
        "name": "base",
        "variants": [variant("base", 0.4, state="base"), variant(HOSTILE, 0.5), variant("late", 0.1, cause="it burst")],
    },
    ensemble=ENSEMBLE,
    provenance={"truth": HOSTILE, "months": "0008-07"},
)
BARE = {"parts": False, "timed": False, "lacking": ("Rows do not tell their place.",)}


def evaluations():
    subject = replace(made_evaluation("ensemble"), lacking=("No grid is known.",))
    return [subject, *(made_evaluation(name, skill, seed=seed) for seed, (name, skill) in enumerate(SKILLS.items(), 1))]


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    return read(write_report(str(tmp_path_factory.mktemp("report")), evaluations(), MATERIAL))


@pytest.fixture(scope="module")
def tree(page) -> ElementTree.Element:
    return parse(page)


def read(url: str) -> str:
    return Path(url).read_text(encoding="utf-8")


def parse(page: str) -> ElementTree.Element:
    """The document, refused where HTML5 does not allow it."""
    return html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parse(page)


def words(element: ElementTree.Element) -> str:
    return "".join(element.itertext())


def table(tree, caption: str) -> tuple[list[str], dict[str, list[str | float]]]:
    """Header, and rows by name: the full figure of a cell that has one, else its words."""
    found = next(one for one in tree.iter("table") if words(one.find("caption")).startswith(caption))
    rows = {}
    for row in found.find("tbody"):
        name, *cells = row
        rows[words(name)] = [float(cell.find("data").get("value")) if cell.find("data") is not None else words(cell) for cell in cells]
    return [words(cell) for cell in found.find("thead")[0]], rows


def sections(tree) -> list[str]:
    return [section.get("id") for section in tree.iter("section")]


def test_a_page_is_valid_html_and_its_index_leads_to_every_section(tree):
    ids = [element.get("id") for element in tree.iter() if element.get("id")]
    assert len(set(ids)) == len(ids)
    assert [link.get("href") for link in tree.iter("a")] == [f"#{key}" for key in sections(tree)]
    assert sections(tree)[:8] == ["summary", "levels", "maps", "bias", "scalars", "worst", "precipitation", "climsim"]
    assert sections(tree)[8:] == ["training", "variants", "ensemble", "provenance"]


def test_a_page_needs_nothing_from_outside(page, tree):
    for element in tree.iter():
        for attribute in ("src", "href", "data", "action", "poster", "srcset"):
            assert element.get(attribute, "#").startswith(("#", "data:image/")), element.tag
    style = words(next(tree.iter("style")))
    assert "url(" not in style
    assert "@import" not in style
    assert not [element.tag for element in tree.iter() if element.tag in {"script", "link", "iframe", "object", "embed", "base"}]
    assert len(page) < 5_000_000


def test_every_picture_opens_and_says_what_it_shows(tree):
    pictures = list(tree.iter("img"))
    assert len(pictures) >= 9
    for picture in pictures:
        assert len(picture.get("alt")) > 20
        kind, _, content = picture.get("src").partition(";base64,")
        content = base64.b64decode(content)
        if kind == "data:image/png":
            assert matplotlib.image.imread(io.BytesIO(content)).std() > 0.05
        else:
            drawing = ElementTree.fromstring(content)
            references = [value for element in drawing.iter() for name, value in element.items() if name.endswith("href")]
            assert references
            assert all(reference.startswith("#") for reference in references)


def test_the_summary_has_the_scores_of_scikit_learn(tree):
    header, rows = table(tree, "R² beside it")
    assert header[1:] == ["R² (293 learned)", "those that vary", "median", "columns below 0", "R² (308 scored)", "R² (368)"]
    for seed, (name, skill) in enumerate({"ensemble": 1.0, **SKILLS}.items()):
        _, truth, prediction = made_rows(skill, seed=seed)
        r2 = r2_score(truth * SCORED, prediction * SCORED, multioutput="raw_values")
        learned, _, median, below, scored, every = rows[name]
        np.testing.assert_allclose([learned, scored, every], [r2[LEARNED].mean(), r2[SCORED].mean(), r2.mean()], rtol=1e-12)
        np.testing.assert_allclose([median, below], [np.median(r2[LEARNED]), (r2[LEARNED] < 0).sum()], rtol=1e-12)


def test_skill_comes_first_beside_what_is_attainable(tree):
    header, rows = table(tree, "Mean skill over the 293")
    assert header[1:4] == ["skill", "attainable", "95% interval"]
    score = made_evaluation().moments.score()
    assert rows["ensemble"][:2] == [score.skill, score.attainable]
    assert rows["ensemble"][-2:] == [12 * 384, 12]
    assert f"skill {digits(score.skill)} of an attainable {digits(score.attainable)}" in words(tree.find(".//header") or tree)
    first = next(picture.get("alt") for picture in tree.iter("img"))
    assert first.startswith("Skill and attainable skill against pressure")


def test_groups_are_means_over_their_learned_columns(tree):
    for caption, values in (("skill", "skill_by_column"), ("R²", "r2")):
        header, rows = table(tree, f"Mean {caption} over the learned columns of a group")
        by_column = getattr(made_evaluation().moments.score(), values)
        cloud = np.concatenate([by_column[120:180][27:], by_column[180:240][12:]])
        wind = np.concatenate([by_column[252:300], by_column[312:360]])
        assert header[1:] == ["temperature", "vapour", "cloud", "wind", "surface"]
        expected = [by_column[:60].mean(), by_column[72:120].mean(), cloud.mean(), wind.mean(), by_column[360:].mean()]
        np.testing.assert_allclose(rows["ensemble"], expected)


def test_the_subject_comes_first_and_the_others_by_their_skill(tree):
    _, rows = table(tree, "Mean skill over the 293")
    assert list(rows) == ["ensemble", "swa", HOSTILE, "ridge"]
    assert [words(row[0]) for row in tree.iter("tr") if row.get("class") == "subject"] == ["ensemble"] * 4


def drawn_in(tree, beginning: str) -> str:
    return next(picture.get("alt") for picture in tree.iter("img") if picture.get("alt").startswith(beginning))


def test_the_subject_the_best_other_and_the_baselines_are_drawn(tree):
    for beginning in ("Skill and attainable", "R² against pressure", "Mean profiles", "Distribution of precipitation"):
        names = drawn_in(tree, beginning)
        assert "ensemble, swa, ridge" in names or "swa, ridge" in names.partition("ensemble")[2]
        assert HOSTILE not in names
    assert any("the tables list all 4" in words(paragraph) for paragraph in tree.iter("p"))


def test_what_is_drawn_can_be_chosen(tmp_path):
    evaluations = [made_evaluation(name, parts=False, days=2) for name in ("a", "b", "c")]
    tree = parse(read(write_report(str(tmp_path), evaluations, Material(), draw=["c"])))
    assert drawn_in(tree, "Skill and attainable").endswith("for a, c")
    with pytest.raises(UserError, match="'x' is none of the predictions, which are a, b, c"):
        write_report(str(tmp_path), evaluations, Material(), draw=["x"])
    many = [made_evaluation(str(index), parts=False, days=1) for index in range(7)]
    with pytest.raises(UserError, match="cannot be told apart"):
        write_report(str(tmp_path), many, Material(), draw=[one.name for one in many])


def test_columns_that_hardly_vary_are_named_where_they_decide_r2():
    days, truth, prediction = made_rows(1.0, days=2)
    ice = TARGETS["ptend_q0003"].start + 13
    truth[:, ice] *= 1e-9
    moments = TimedMoments(TargetStatistics.of_competition())
    moments.update(days, truth, prediction)
    score = moments.score()
    assert deciding_columns(score).startswith("R² is dominated by 1 column that hardly varies in these rows: ptend_q0003_13. ")
    assert f"Skill is {digits(score.skill)} of an attainable {digits(score.attainable)}." in deciding_columns(score)
    assert deciding_columns(made_evaluation().moments.score()) == ""


def test_differences_are_paired_with_the_subject(tree):
    _, rows = table(tree, "Mean skill over the 293")
    subject, other = made_evaluation(), made_evaluation("swa", 0.9, seed=2)
    by = compare_evaluations(subject, other).headlines["skill"]
    assert rows["swa"][3] == pytest.approx(by.value)
    assert rows["swa"][4].replace("\N{MINUS SIGN}", "-") == f"{digits(by.low, '+')} to {digits(by.high, '+')}"
    ends = interval(subject.moments)
    assert rows["ensemble"][2] == f"{digits(ends.low)} to {digits(ends.high)}"
    assert rows["ensemble"][3:5] == ["", ""]


def test_biases_are_in_the_units_that_they_name(tree):
    header, rows = table(tree, "Biases at the surface")
    subject = made_evaluation()
    assert header[:4] == ["surface flux", "unit", "mean of truth", "bias of ensemble"]
    rain = rows["rain and snow rate, liquid water equivalent"]
    column = TARGETS["cam_out_PRECC"].start
    assert rain[0] == "mm/day"
    np.testing.assert_allclose(rain[1:3], np.array([subject.mean[column], subject.bias[column]]) * 86400 * 1000)


def test_worst_columns_stand_with_their_reasons(tree):
    _, rows = table(tree, "Learned columns of ensemble")
    for column in worst_columns(made_evaluation()):
        assert rows[column.column][:3] == [column.skill, column.attainable, column.r2]
        assert rows[column.column][-1] == column.reason


def test_climsims_metrics_stand_beside_the_competitions_under_their_names(tree):
    header, rows = table(tree, "ensemble: ClimSim's metrics")
    subject = made_evaluation()
    assert header == ["", "unit", "MAE", "RMSE", "bias", "CRPS", "R² (ClimSim's)", "R² (competition)", "skill"]
    assert rows["ptend_t"][0] == "W/m²"
    means = [values[:60].mean() for values in (subject.climsim.mae, subject.climsim.rmse, subject.climsim.bias, subject.climsim.crps)]
    np.testing.assert_allclose(
        rows["ptend_t"][1:],
        [
            *means,
            subject.climsim.r2[:60].mean(),
            subject.moments.score().r2[:60].mean(),
            subject.moments.score().skill_by_column[:60].mean(),
        ],
    )
    _, crps = table(tree, "CRPS in physical units")
    np.testing.assert_allclose(crps["air temperature"][1:], [subject.crps[:60].mean() * 86400, subject.mae[:60].mean() * 86400])


def test_runs_variants_and_members_are_told(tree):
    _, runs = table(tree, "Runs")
    assert runs == {HOSTILE: [0.2, 0.9, -5.0, 1, 100, 4.0]}
    _, variants = table(tree, "Variants of base")
    assert variants[HOSTILE][1:5] == [0.5, 0.5, -1.0, -2.0]
    assert "late: it burst" in [words(item) for item in tree.iter("li")]
    header, members = table(tree, "Members and their weights")
    assert header[1:3] == ["weight, temperature", "weight, others"]
    assert members == {"swa": [0.625, 0.5, 0.53, ""], HOSTILE: [0.375, 0.5, 0.51, -0.02]}


def test_what_could_not_be_computed_is_said(tree):
    assert "No grid is known." in [words(item) for item in tree.iter("li")]
    _, rows = table(tree, "Where this comes from")
    assert rows == {"truth": [HOSTILE], "months": ["0008-07"]}


def test_names_are_words_whatever_they_hold(page, tree):
    assert "<script" not in page
    assert words(next(tree.iter("h1"))) == MATERIAL.title
    assert any(HOSTILE in picture.get("alt") for picture in tree.iter("img"))


def test_what_is_not_known_is_left_out(tmp_path):
    bare = made_evaluation(days=1, **BARE)
    tree = parse(read(write_report(str(tmp_path), [bare], Material())))
    assert sections(tree) == ["summary", "levels", "bias", "worst", "provenance"]
    header, rows = table(tree, "Mean skill over the 293")
    assert rows["ours"][header.index("95% interval") - 1] == ""
    assert rows["ours"][-1] == ""
    assert "Rows do not tell their place." in [words(item) for item in tree.iter("li")]


def test_the_same_evaluations_give_the_same_bytes(tmp_path):
    evaluations = [made_evaluation(days=2, parts=False)]
    pages = [read(write_report(str(tmp_path / name), evaluations, Material())) for name in ("a", "b")]
    assert pages[0] == pages[1]


def test_a_report_needs_an_evaluation(tmp_path):
    with pytest.raises(ValueError, match="at least one"):
        write_report(str(tmp_path), [], Material())


@pytest.fixture(scope="module")
def compared(tmp_path_factory) -> str:
    worse, better = made_evaluation("old", 0.4, seed=1), made_evaluation("new", 1.0, seed=2)
    beside = made_evaluation("ridge", 0.1, seed=3)
    return compare_report(str(tmp_path_factory.mktemp("compared")), [worse, beside], [better], ("A", HOSTILE))


def test_two_evaluations_stand_side_by_side(compared):
    tree = parse(read(compared))
    found = compare_evaluations(made_evaluation("old", 0.4, seed=1), made_evaluation("new", 1.0, seed=2))
    assert sections(tree) == ["differences", "levels", "columns", "summary"]
    _, headlines = table(tree, "Mean scores over columns")
    by = found.headlines["skill"]
    assert headlines["skill"] == [pytest.approx(by.value), f"{digits(by.low, '+')} to {digits(by.high, '+')}", "better"]
    _, variables = table(tree, "Mean skill over the learned columns of a variable")
    np.testing.assert_allclose([row[0] for row in variables.values()], [one.value for one in found.variables.values()])
    _, columns = table(tree, "Most skill gained")
    gained = int(np.argmax(found.columns.value))
    assert next(iter(columns)) == TARGETS.columns[gained]
    names = [words(row[0]) for row in tree.iter("tr")]
    assert {"A", HOSTILE, "ridge (A)"} <= set(names)


def test_an_evaluation_beside_itself_does_not_differ(tmp_path):
    one = [made_evaluation(days=3, parts=False)]
    tree = parse(read(compare_report(str(tmp_path), one, one, ("A", "B"))))
    _, headlines = table(tree, "Mean scores over columns")
    assert headlines["skill"][0] == 0
    assert headlines["skill"][2] == "not told apart"
    assert "No column differs." in [words(paragraph) for paragraph in tree.iter("p")]


def test_evaluations_of_other_rows_are_not_compared(tmp_path):
    a, b = (made_evaluation(days=days, parts=False) for days in (2, 3))
    with pytest.raises(UserError, match="same rows"):
        compare_report(str(tmp_path), [a], [b], ("A", "B"))
    with pytest.raises(ValueError, match="each side"):
        compare_report(str(tmp_path), [a], [], ("A", "B"))


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
def test_a_browser_opens_the_page_without_errors(page, tmp_path):
    # the browser itself counts the pictures that it could draw
    counting = "<script>onload = () => document.body.dataset.drawn = [...document.images].filter(i => i.naturalWidth > 0).length</script>"
    place = tmp_path / "report.html"
    place.write_text(page.replace("</body>", f"{counting}</body>"), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--enable-logging=stderr"]
    command = [CHROMIUM, *options, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", place.as_uri()]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in ran.stderr
    assert f'data-drawn="{page.count("<img ")}"' in ran.stdout


def test_what_is_no_number_is_a_dash_without_a_value():
    assert figure(float("nan")) == score(float("nan")) == Cell("\N{EM DASH}")
    assert figure(None) == score(None) == Cell("")


def test_a_score_of_rounding_alone_is_shown_as_0_and_kept():
    assert score(-2.2e-16) == Cell("0", -2.2e-16)
    assert figure(-2.2e-16).text == "\N{MINUS SIGN}2.20e\N{MINUS SIGN}16"
    assert score(0.25, "+").text == "+0.250"


def test_one_is_counted_without_an_s():
    assert [counted(number, "row") for number in (0, 1, 1200)] == ["0 rows", "1 row", "1,200 rows"]
