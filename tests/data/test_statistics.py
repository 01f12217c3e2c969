import csv
import io
import re
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from leapray import storage
from leapray.climsim.grid import figures
from leapray.climsim.schema import KAGGLE
from leapray.data.fitting import Fitting
from leapray.data.moments import Moments
from leapray.data.statistics import transform_from_statistics
from leapray.errors import UserError
from leapray.recipe import Choice
from tests.columns import INPUTS, TARGETS

STANDARD = Choice(name="standard")
FIELDS = ("column", "mean", "std", "min", "max")
Table = list[dict[str, str]]


def table() -> Table:
    with (files("leapray.climsim") / "figures" / "low_res_columns.csv").open() as file:
        return list(csv.DictReader(file))


def write(path: Path, rows: Table, fields: tuple[str, ...] = FIELDS) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fields, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    path.write_text(text.getvalue())
    return str(path)


def change(rows: Table, name: str, /, **values: str) -> None:
    next(row for row in rows if row["column"] == name).update(values)


def test_a_csv_gives_the_mean_and_std_that_it_holds(tmp_path):
    transform = transform_from_statistics(write(tmp_path / "low.csv", table()), KAGGLE, STANDARD, ())
    values = figures("low_res_columns")
    mean, std = (np.array([float(v) for v in values[key]]) for key in ("mean", "std"))
    # of level 12 to 17 cloud liquid, float32 holds nothing
    beyond = [f"state_q0002_{level}" for level in range(12, 18)]
    for scaling, columns in ((transform.inputs, slice(0, INPUTS.width)), (transform.targets, slice(INPUTS.width, None))):
        varying = ~scaling.constant.numpy()
        np.testing.assert_array_equal(scaling.mean.numpy(), mean[columns])
        np.testing.assert_allclose(scaling.scale.numpy()[varying], std[columns][varying], rtol=1e-15)
    masked = np.array(INPUTS.columns)[transform.inputs.constant.numpy()].tolist()
    assert masked == beyond + [f"pbuf_{gas}_{level}" for gas in ("CH4", "N2O") for level in range(27, 60)]
    np.testing.assert_array_equal(transform.statistics.mean, mean[INPUTS.width :])
    np.testing.assert_allclose(transform.statistics.variance, std[INPUTS.width :] ** 2, rtol=1e-15)
    assert transform.statistics.origin == "the training rows of low.csv"
    assert transform.departures == []
    assert transform.fitted_on["statistics"] == "low.csv"


def test_order_of_rows_and_fields_and_further_ones_change_nothing(tmp_path):
    expected = transform_from_statistics(write(tmp_path / "a.csv", table()), KAGGLE, STANDARD, ())
    rows = [*table()[::-1], {"column": "cam_in_SNOWHICE", "mean": "", "std": "x"}]
    other = transform_from_statistics(write(tmp_path / "b.csv", rows, ("max", "kind", *FIELDS[:4])), KAGGLE, STANDARD, ())
    assert other.inputs.to_dict() == expected.inputs.to_dict()
    assert other.targets.to_dict() == expected.targets.to_dict()


def test_ablated_targets_may_be_blank(tmp_path):
    rows = table()
    change(rows, "ptend_u_3", mean="", std="", min="", max="")
    transform = transform_from_statistics(write(tmp_path / "low.csv", rows), KAGGLE, STANDARD, ())
    assert transform.targets.constant[TARGETS.columns.index("ptend_u_3")]


@pytest.mark.parametrize(
    ("column", "values", "sentence"),
    [
        ("state_t_5", {"std": ""}, "std of column state_t_5 is '', expected a finite number"),
        ("ptend_u_30", {"max": " "}, "max of column ptend_u_30 is '', expected a finite number"),
        ("state_ps", {"mean": "nan"}, "mean of column state_ps is 'nan', expected a finite number"),
        ("state_ps", {"mean": "98 kPa"}, "mean of column state_ps is '98 kPa', expected a finite number"),
        ("state_ps", {"std": "-1"}, "column state_ps has std -1, min "),
        ("state_ps", {"column": "state_px"}, "column state_ps is missing, expected a row for every column"),
        ("state_ps", {"column": "state_t_0"}, "column state_t_0 stands more than once, expected every column once"),
    ],
)
def test_a_figure_that_cannot_be_is_named(tmp_path, column, values, sentence):
    rows = table()
    change(rows, column, **values)
    url = write(tmp_path / "low.csv", rows)
    with pytest.raises(UserError, match=re.escape(f"{url}: {sentence}")):
        transform_from_statistics(url, KAGGLE, STANDARD, ())


def test_the_high_res_table_has_too_few_figures_and_says_which(tmp_path):
    with pytest.raises(UserError, match="std of column ptend_t_0 is '', expected a finite number"):
        transform_from_statistics(str(files("leapray.climsim") / "figures" / "high_res_columns.csv"), KAGGLE, STANDARD, ())


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.csv", b"column,mean,std\nstate_t_0,1,2\n", "field min, max missing, expected column, mean, std, min, max"),
        ("a.csv", b"", "field column, mean, std, min, max missing"),
        ("a.csv", b"\xff\xfe\x00", "not a csv ("),
        ("a.nc", b"", "is neither a .json nor a .csv file"),
        ("a.json", b"[1]", "not a transform"),
        ("a.json", b"{", "not valid json"),
    ],
)
def test_another_file_is_refused(tmp_path, name, content, sentence):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=re.escape(sentence)):
        transform_from_statistics(str(tmp_path / name), KAGGLE, STANDARD, ())


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"low\.csv: no such file"):
        transform_from_statistics(str(tmp_path / "low.csv"), KAGGLE, STANDARD, ())


@pytest.mark.parametrize(
    ("scaling", "features", "why"),
    [
        ("standard", ["air_total", "u_difference"], "features air_total, u_difference needs more; give a transform.json"),
        ("log-per-variable", [], "scaling 'log-per-variable' needs more; give a transform.json"),
    ],
)
def test_a_csv_cannot_serve_what_needs_the_rows(tmp_path, scaling, features, why):
    with pytest.raises(UserError, match=re.escape(f"a csv has the statistics of raw columns only, and {why}")):
        transform_from_statistics(write(tmp_path / "low.csv", table()), KAGGLE, Choice(name=scaling), features)


def test_a_transform_is_taken_as_it_stands_and_only_for_its_own_recipe(tmp_path):
    fitting = Fitting(KAGGLE, STANDARD, ["air_total"])
    rng = np.random.default_rng(0)
    columns = fitting.columns(rng.normal(size=(9, INPUTS.width)), rng.normal(size=(9, TARGETS.width)))
    transform = fitting.fit(Moments.of(columns), {"months": "0001-02 up to 0008-02"})
    url = str(tmp_path / "transform.json")
    storage.write_json(url, transform.to_dict())
    assert transform_from_statistics(url, KAGGLE, STANDARD, ["air_total"]).to_dict() == transform.to_dict()
    for scaling, features, sentence in (
        (STANDARD, ["u_difference"], "data.features ['air_total'], but the recipe has ['u_difference']"),
        (Choice(name="reference"), ["air_total"], "data.scaling.name standard, but the recipe has reference"),
        (
            Choice(name="standard", options={"clip": 5}),
            ["air_total"],
            "data.scaling.options {'clip': 30.0, 'departures': True}, but the recipe has {'clip': 5.0, 'departures': True}",
        ),
    ):
        with pytest.raises(UserError, match=re.escape(f"{url}: was made with {sentence}")):
            transform_from_statistics(url, KAGGLE, scaling, features)
