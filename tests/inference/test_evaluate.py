import json
from pathlib import Path

import netCDF4
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import r2_score

from leapray import storage
from leapray.climsim.calendar import STEPS_PER_DAY
from leapray.climsim.grid import layer_mass, low_res_grid
from leapray.climsim.netcdf import Snapshot, read_grid
from leapray.climsim.schema import STEP_SECONDS
from leapray.data import flat
from leapray.data.flat import Selection, to_table
from leapray.errors import UserError
from leapray.evaluation.distributions import fair_crps
from leapray.evaluation.results import read_evaluations
from leapray.inference.evaluate import evaluate
from leapray.inference.parts import part_writer
from tests.columns import ABLATED, EXACT, EXACT_SOURCE, INPUTS, LEARNED, SCORED, TARGETS
from tests.samples import random_rows
from tests.target_tables import write_targets

STEPS = [0, 30, STEPS_PER_DAY, 3 * STEPS_PER_DAY]
RNG = np.random.default_rng(0)


def rows_of(columns: int) -> np.ndarray:
    """Flat rows ``(len(STEPS) * columns, 924)`` with real surface pressures."""
    rows = random_rows(len(STEPS) * columns)
    rows[:, INPUTS["state_ps"].start] = RNG.normal(98000, 2000, len(rows))
    return rows


LOW_RES = rows_of(384)
TRUTH = LOW_RES[:, INPUTS.width :]
OUTPUTS = [TRUTH + 0.3 * RNG.normal(size=TRUTH.shape) for _ in range(3)]
MEAN = np.mean(OUTPUTS, axis=0)


def write_truth(folder: Path, rows: np.ndarray = LOW_RES, kind: str = "low-res", columns: int = 384) -> str:
    """Two snapshots a file."""
    folder.mkdir(parents=True)
    tables = [to_table(Snapshot(kind, step, rows[index * columns : (index + 1) * columns])) for index, step in enumerate(STEPS)]
    for number in range(2):
        pq.write_table(pa.concat_tables(tables[2 * number : 2 * number + 2]), folder / f"{number}.parquet")
    return str(folder)


def write_predictions(truth: str, url: str, prediction: np.ndarray, members: dict[str, np.ndarray] | None = None) -> str:
    """As predict writes them, of all rows of a source in order."""
    members, start = members or {}, 0
    for piece in flat.list_pieces(truth):
        with part_writer(url, piece.index, TARGETS, list(members)) as write:
            for block in flat.read_piece(piece):
                rows = slice(start, start + len(block.row))
                write(block, prediction[rows], [member[rows] for member in members.values()])
                start = rows.stop
    return url


def physical(prediction: np.ndarray) -> np.ndarray:
    """With the physics, written out."""
    water, state = slice(60, 240), LOW_RES[:, 60:240]
    corrected = prediction.copy()
    corrected[:, water] = np.maximum(prediction[:, water], -state / STEP_SECONDS)
    corrected[:, EXACT] = -LOW_RES[:, : INPUTS.width][:, EXACT_SOURCE] / STEP_SECONDS
    corrected[:, ABLATED] = 0
    corrected[:, 360:] = np.maximum(prediction[:, 360:], 0)
    return corrected


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> tuple[str, str]:
    root = tmp_path_factory.mktemp("low-res")
    truth = write_truth(root / "truth")
    members = dict(zip("abc", OUTPUTS, strict=True))
    return write_predictions(truth, str(root / "predictions"), physical(MEAN), members), truth


def by_sklearn(prediction: np.ndarray, truth: np.ndarray = TRUTH) -> np.ndarray:
    return r2_score(truth * SCORED, prediction * SCORED, multioutput="raw_values")


def test_the_ensemble_its_members_and_what_stands_beside_are_scored_in_one_pass(files, tmp_path):
    predictions, truth = files
    other = write_predictions(truth, str(tmp_path / "other"), physical(OUTPUTS[0] + 0.5))
    seen = []
    found = evaluate(
        predictions, truth, str(tmp_path / "e"), beside={"other": other}, report=False, progress=lambda *count: seen.append(count)
    )
    assert [one.name for one in found] == ["ensemble", "other", "a", "b", "c"]
    for one, prediction in zip(found, [physical(MEAN), physical(OUTPUTS[0] + 0.5), *map(physical, OUTPUTS)], strict=True):
        np.testing.assert_allclose(one.moments.score().r2, by_sklearn(prediction), rtol=1e-8, atol=1e-8, err_msg=one.name)
        assert sorted(one.moments.blocks) == [0, 1, 3]
        assert one.climsim is not None
        assert one.lacking == ()
    assert (found[2].moments.score().r2[EXACT] == 1).all()
    expected = fair_crps(TRUTH, np.stack([physical(output) for output in OUTPUTS])).mean(axis=0)
    np.testing.assert_allclose(found[0].crps, expected, rtol=1e-9, atol=1e-20)
    assert seen[-1] == (len(TRUTH), len(TRUTH))
    kept = read_evaluations(str(tmp_path / "e"))
    np.testing.assert_array_equal(kept[1].moments.score().r2, found[1].moments.score().r2)
    scores = storage.read_json(str(tmp_path / "e" / "scores.json"))
    assert scores["r2"] == pytest.approx(by_sklearn(physical(MEAN))[LEARNED].mean())
    assert set(scores["beside"]) == {"other", "a", "b", "c"}
    assert scores["sources"] == {"predictions": predictions, "truth": truth, "beside other": other}


def test_masses_come_from_the_truth_s_surface_pressure(files, tmp_path):
    (found, *_) = evaluate(*files, str(tmp_path), members=False, report=False)
    error = (physical(MEAN) - TRUTH)[:, TARGETS["ptend_t"]] * layer_mass(LOW_RES[:, INPUTS["state_ps"].start]) * 1004.64
    area = low_res_grid().area / low_res_grid().area.mean()
    expected = (np.abs(error).reshape(len(STEPS), 384, 60).mean(axis=0) * area[:, None]).mean(axis=0)
    np.testing.assert_allclose(found.climsim.mae[TARGETS["ptend_t"]], expected, rtol=1e-9)
    assert found.name == "predictions"


def test_a_part_of_the_truth_is_evaluated_where_a_part_was_predicted(files, tmp_path):
    _, truth = files
    chosen = Selection(stride=STEPS_PER_DAY)
    keep = np.repeat([0, 2, 3], 384) * 384 + np.tile(np.arange(384), 3)
    ids = [f"low-res_{STEPS[row // 384]:07d}_{row % 384:05d}" for row in keep]
    shuffled = RNG.permutation(len(keep))
    part = write_targets(tmp_path / "p.parquet", [ids[row] for row in shuffled], MEAN[keep[shuffled]])
    (found,) = evaluate(part, truth, str(tmp_path / "e"), selection=chosen, report=False)
    np.testing.assert_allclose(found.moments.score().r2, by_sklearn(MEAN[keep], TRUTH[keep]), rtol=1e-8, atol=1e-8)
    with pytest.raises(UserError, match=r"384 of 1536 ids of .*truth are not in .*p\.parquet"):
        evaluate(part, truth, str(tmp_path / "e"), report=False)


@pytest.mark.parametrize("shuffled", [False, True])
def test_some_of_what_was_predicted_is_evaluated_where_rows_are_selected(files, tmp_path, shuffled):
    predictions, truth = files
    if shuffled:
        order = RNG.permutation(len(MEAN))
        ids = [f"low-res_{STEPS[row // 384]:07d}_{row % 384:05d}" for row in order]
        predictions = write_targets(tmp_path / "p.parquet", ids, physical(MEAN)[order])
    chosen = Selection(stride=STEPS_PER_DAY)
    keep = np.repeat([0, 2, 3], 384) * 384 + np.tile(np.arange(384), 3)
    found = evaluate(predictions, truth, str(tmp_path / "e"), selection=chosen, report=False)[0].moments.score()
    np.testing.assert_allclose(found.r2, by_sklearn(physical(MEAN)[keep], TRUTH[keep]), rtol=1e-8, atol=1e-8)


def test_rows_that_cannot_be_used_are_left_out_where_asked_and_told(tmp_path):
    """One that was not predicted, for its input is NaN, and two whose targets are no numbers, which were."""
    rows, notes = LOW_RES.copy(), []
    rows[5, 3], rows[700, INPUTS.width + 9], rows[900, INPUTS.width + 70] = np.nan, np.inf, 9.96921e36
    truth = write_truth(tmp_path / "truth", rows)
    whole = write_predictions(truth, str(tmp_path / "all"), MEAN, {"a": OUTPUTS[0]})
    kept, used = np.delete(np.arange(len(rows)), 5), np.delete(np.arange(len(rows)), [5, 700, 900])
    ids = np.array([f"low-res_{STEPS[row // 384]:07d}_{row % 384:05d}" for row in range(len(rows))])
    some = write_targets(tmp_path / "p.parquet", ids[kept].tolist(), MEAN[kept])
    with pytest.raises(UserError, match=r"1 of 1536 ids of .*truth are not in .*p\.parquet"):
        evaluate(some, truth, str(tmp_path / "e"), report=False)
    for predictions, members in ((some, None), (whole, True)):
        found = evaluate(predictions, truth, str(tmp_path / "e"), report=False, members=members, bad_rows="drop", notice=notes.append)
        assert all(one.moments.score().rows == len(used) for one in found)
        np.testing.assert_allclose(found[0].moments.score().r2, by_sklearn(MEAN[used], TRUTH[used]), rtol=1e-8, atol=1e-8)
        assert f"{truth}: left out 3 row(s) that hold NaN, Inf or fill values" in notes


def test_an_evaluation_is_replaced_with_a_word_and_nobody_elses_scores(files, tmp_path):
    predictions, truth = files
    place, notes = tmp_path / "e", []
    for _ in range(2):
        evaluate(predictions, truth, str(place), members=False, report=False, notice=notes.append)
    assert notes == []
    evaluate(predictions, truth, str(place), members=False, report=False, notice=notes.append, beside={"same": predictions})
    assert notes == [f"{place}: the evaluation of {predictions} that lay there is replaced"]
    (place / "scores.json").write_text('{"mine": 1}')
    with pytest.raises(UserError, match=r"scores\.json: is no evaluation's"):
        evaluate(predictions, truth, str(place), report=False)
    assert (place / "scores.json").read_text() == '{"mine": 1}'


def test_ids_that_begin_anew_in_every_file_are_matched_by_row(tmp_path):
    rows = rows_of(4)
    (tmp_path / "truth").mkdir()
    for number in range(2):
        part = rows[8 * number : 8 * number + 8]
        table = pa.table(
            {"sample_id": [f"train_{row}" for row in range(8)]} | dict(zip(INPUTS.columns + TARGETS.columns, part.T, strict=True))
        )
        pq.write_table(table, tmp_path / "truth" / f"0001-0{number + 2}.parquet")
    truth = str(tmp_path / "truth")
    prediction = rows[:, INPUTS.width :] + 0.3 * RNG.normal(size=(16, TARGETS.width))
    predictions = write_predictions(truth, str(tmp_path / "predictions"), prediction)
    parts = sorted((tmp_path / "predictions").glob("*.parquet"))
    # in another order than the truth's
    parts[0].rename(tmp_path / "predictions" / "part-000009.parquet")
    (found,) = evaluate(predictions, truth, str(tmp_path / "e"), report=False)
    np.testing.assert_allclose(found.moments.score().r2, by_sklearn(prediction, rows[:, INPUTS.width :]), rtol=1e-8, atol=1e-8)
    assert not found.timed
    assert found.climsim is found.zonal is None
    assert "do not tell their time and place" in found.lacking[0]


def test_a_submission_is_scored_as_its_physical_predictions(tmp_path):
    ids = [f"test_{row}" for row in range(50)]
    weights = SCORED / np.maximum(TRUTH.std(axis=0), 1e-15)
    truth = write_targets(tmp_path / "truth.csv", ids, TRUTH[:50])
    sample = write_targets(tmp_path / "sample.csv", ids, np.tile(weights, (50, 1)))
    submission = write_targets(tmp_path / "submission.csv", ids, (MEAN[:50] * weights))
    plain = write_targets(tmp_path / "plain.parquet", ids, np.where(SCORED, MEAN[:50], 0))
    (found,) = evaluate(submission, truth, str(tmp_path / "a"), sample_submission=sample, report=False)
    (expected,) = evaluate(plain, truth, str(tmp_path / "b"), report=False)
    np.testing.assert_allclose(found.moments.score().r2, expected.moments.score().r2, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.mae, expected.mae, rtol=1e-9)
    assert any("has no inputs" in sentence for sentence in found.lacking)
    notes = []
    evaluate(plain, truth, str(tmp_path / "b"), report=False, notice=notes.append)
    assert notes == []
    weighted = write_targets(tmp_path / "weighted.csv", ids, 1e4 * TRUTH[:50])
    evaluate(weighted, truth, str(tmp_path / "c"), report=False, notice=notes.append)
    assert len(notes) == 1
    assert "--sample-submission" in notes[0]


def write_grid(path: Path, columns: int, names: tuple[str, ...] = ("lat", "lon", "area")) -> str:
    with netCDF4.Dataset(path, "w") as file:
        file.createDimension("ncol", columns)
        for name in names:
            file.createVariable(name, "f8", ("ncol",))[:] = np.linspace(1, 80, columns)
    return str(path)


def test_high_res_needs_its_grid_and_takes_any(tmp_path):
    rows = rows_of(6)
    truth = write_truth(tmp_path / "truth", rows, "high-res", 6)
    predictions = write_predictions(truth, str(tmp_path / "predictions"), rows[:, INPUTS.width :] + 0.1)
    (without,) = evaluate(predictions, truth, str(tmp_path / "e"), report=False)
    assert without.climsim is None
    assert any("--grid" in sentence for sentence in without.lacking)
    grid = write_grid(tmp_path / "grid.nc", 6)
    (found,) = evaluate(predictions, truth, str(tmp_path / "e"), grid=grid, report=False)
    area = np.linspace(1, 80, 6)
    expected = 0.1 * (area / area.mean()).mean()
    np.testing.assert_allclose(found.climsim.mae[TARGETS["cam_out_NETSW"]], expected, rtol=1e-9)
    assert found.lacking == ()
    (other,) = evaluate(predictions, truth, str(tmp_path / "e"), grid=write_grid(tmp_path / "other.nc", 9), report=False)
    assert any("columns 0 to 5, and the grid has 9" in sentence for sentence in other.lacking)


def test_a_file_that_is_no_grid_is_refused(tmp_path):
    (tmp_path / "text.nc").write_text("no grid")
    with pytest.raises(UserError, match=r"text\.nc: cannot be read as netCDF"):
        read_grid(str(tmp_path / "text.nc"))
    with pytest.raises(UserError, match=r"grid\.nc: variable lon, area is missing"):
        read_grid(write_grid(tmp_path / "grid.nc", 3, ("lat",)))


def test_what_is_asked_for_and_not_there_is_refused(files, tmp_path):
    predictions, truth = files
    plain = write_targets(tmp_path / "p.parquet", ["a"], TRUTH[:1])
    with pytest.raises(UserError, match=r"p\.parquet: has no members' predictions"):
        evaluate(plain, truth, str(tmp_path / "e"), members=True)
    with pytest.raises(UserError, match="a names two of the predictions"):
        evaluate(predictions, truth, str(tmp_path / "e"), beside={"a": plain})
    with pytest.raises(UserError, match="absent: not a run"):
        evaluate(predictions, truth, str(tmp_path / "e"), runs={"mine": str(tmp_path / "absent")})
    bare = write_targets(tmp_path / "t.parquet", ["a"], TRUTH[:1])
    with pytest.raises(UserError, match=r"t\.parquet: has targets alone, of which no months can be chosen"):
        evaluate(plain, bare, str(tmp_path / "e"), selection=Selection(stride=2))


@pytest.mark.parametrize("where", ["truth", "prediction"])
def test_a_number_that_is_not_finite_is_refused(tmp_path, where):
    values = {"truth": TRUTH[:3].copy(), "prediction": MEAN[:3].copy()}
    values[where][1, 5] = np.nan
    urls = {name: write_targets(tmp_path / f"{name}.parquet", ["a", "b", "c"], matrix) for name, matrix in values.items()}
    with pytest.raises(UserError, match=rf"{where}\.parquet: {TARGETS.columns[5]} of b is nan, expected finite"):
        evaluate(urls["prediction"], urls["truth"], str(tmp_path / "e"))


def test_the_report_shows_runs_variants_and_ensemble(tmp_path):
    rows, predicted = TRUTH[:6].copy(), MEAN[:6].copy()
    for values in (rows, predicted):
        values[:, TARGETS["cam_out_PRECC"]] = np.geomspace(1e-9, 1e-6, 6)[:, None]
    urls = [write_targets(tmp_path / f"{name}.parquet", list("abcdef"), values) for name, values in (("p", predicted), ("t", rows))]
    variants = []
    for name in ("one", "two"):
        variants.append(str(tmp_path / name / "variants.json"))
        entry = {"name": "ema", "state": "finished", "model": "ema/model", "test_r2": 0.5, "validation_r2": 0.4, "epochs": 3}
        storage.write_json(variants[-1], {"name": name, "variants": [entry]})
    evaluate(*urls, str(tmp_path / "e"), variants=variants)
    page = (tmp_path / "e" / "report.html").read_text()
    assert "one ema" in page
    assert "two ema" in page
    assert json.loads((tmp_path / "e" / "scores.json").read_text())["rows"] == 6


def test_rows_with_a_step_and_a_column_tell_their_place_where_their_kind_is_given(files, tmp_path):
    predictions, _ = files
    columns = dict(zip(INPUTS.columns + TARGETS.columns, LOW_RES.T, strict=True))
    place = {"step": np.repeat(STEPS, 384), "ncol": np.tile(np.arange(384, dtype=np.int32), len(STEPS))}
    ids = [f"low-res_{step:07d}_{ncol:05d}" for step, ncol in zip(place["step"], place["ncol"], strict=True)]
    truth = str(tmp_path / "truth.parquet")
    pq.write_table(pa.table({"sample_id": ids} | place | columns), truth)
    (untold,) = evaluate(predictions, truth, str(tmp_path / "a"), members=False, report=False)
    (found,) = evaluate(predictions, truth, str(tmp_path / "b"), members=False, report=False, kind="low-res")
    assert not untold.timed
    assert sorted(found.moments.blocks) == [0, 1, 3]
    assert found.lacking == ()


def test_a_selection_without_rows_is_refused(files, tmp_path):
    with pytest.raises(UserError, match=r"truth: no rows"):
        evaluate(*files, str(tmp_path), selection=Selection(stride=50, phase=7))


def test_json_of_something_else_is_refused_before_the_pass(files, tmp_path):
    seen = []
    storage.write_json(str(tmp_path / "other.json"), {"variants": [{"name": "a"}], "name": "x"})
    for asked, words in (
        ({"variants": [str(tmp_path / "other.json")]}, "not a list of variants"),
        ({"ensemble": str(tmp_path / "other.json")}, ""),
    ):
        with pytest.raises(UserError, match=rf"other\.json.*{words}"):
            evaluate(*files, str(tmp_path / "e"), progress=lambda *count: seen.append(count), **asked)
    with pytest.raises(UserError, match="'absent' is none of the predictions"):
        evaluate(*files, str(tmp_path / "e"), progress=lambda *count: seen.append(count), draw=["absent"])
    assert seen == []


def test_a_report_of_earlier_numbers_is_taken_away(files, tmp_path):
    evaluate(*files, str(tmp_path), members=False, report=False)
    (tmp_path / "report.html").write_text("older")
    evaluate(*files, str(tmp_path), members=False, report=False)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("report", [False, True])
def test_a_report_of_something_else_is_left_alone(files, tmp_path, report):
    (tmp_path / "report.html").write_text("of a comparison")
    with pytest.raises(UserError, match=r"report\.html: is no evaluation's, expected an empty place for one"):
        evaluate(*files, str(tmp_path), members=False, report=report)
    assert (tmp_path / "report.html").read_text() == "of a comparison"


@pytest.mark.parametrize("damage", [lambda content: b"", lambda content: content[: len(content) // 2], lambda content: b"x" * 100])
def test_a_damaged_evaluation_is_told(files, tmp_path, damage):
    evaluate(*files, str(tmp_path), members=False, report=False)
    numbers = tmp_path / "evaluation.npz"
    numbers.write_bytes(damage(numbers.read_bytes()))
    with pytest.raises(UserError, match=r"evaluation\.npz: damaged, or not an evaluation that this leapray reads; evaluate again"):
        read_evaluations(str(tmp_path))


def test_numbers_of_another_leapray_are_told(tmp_path):
    np.savez(tmp_path / "evaluation.npz", names=np.array(["a"]))
    with pytest.raises(UserError, match="not an evaluation that this leapray reads"):
        read_evaluations(str(tmp_path))
