"""`leapray check`: good data of every kind has nothing wrong, and each thing that may be wrong is found."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import netCDF4
import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from leapray.cli import app
from leapray.climsim.calendar import FIRST_MONTH, file_name
from leapray.climsim.grid import competition_columns
from leapray.climsim.netcdf import Snapshot, read_pair
from leapray.climsim.pairs import find_pairs
from leapray.climsim.schema import MISSING
from leapray.climsim.synthetic import synthesize
from leapray.data.check import check, require_good
from leapray.data.findings import Finding, Verdict, known_range
from leapray.data.flat import to_table
from leapray.errors import UserError
from leapray.storage import walking
from tests.columns import INPUTS, TARGETS

COLUMNS = {"low-res": None, "aqua-planet": None, "high-res": 300}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("synthetic")
    for kind, columns in COLUMNS.items():
        synthesize(str(folder / kind), kind, steps=1, columns=columns)
    return {kind: folder / kind for kind in COLUMNS}


@pytest.fixture(scope="module")
def rows(sources: dict[str, Path]) -> dict[str, np.ndarray]:
    return {kind: read_pair(find_pairs(str(source))[0]).rows for kind, source in sources.items()}


def verdicts(findings: list[Finding], words: str) -> set[Verdict]:
    return {finding.verdict for finding in findings if words in finding.text}


def wrong(findings: list[Finding]) -> list[str]:
    return [finding.text for finding in findings if finding.verdict is Verdict.WRONG]


@pytest.mark.parametrize("kind", COLUMNS)
def test_nothing_is_wrong_with_good_pairs_and_what_they_become(
    sources: dict[str, Path], rows: dict[str, np.ndarray], tmp_path: Path, kind: str
) -> None:
    table = to_table(Snapshot(kind, 0, rows[kind]))
    pq.write_table(table, tmp_path / "0001-02.parquet")
    pacsv.write_csv(table.slice(0, 100), tmp_path / "b.csv")
    for source in (sources[kind], sources[kind] / "0001-02" / file_name("mlo", 0), tmp_path, tmp_path / "b.csv"):
        findings = check(str(source))
        assert wrong(findings) == []
        assert f"of {kind}" in findings[0].text
        require_good(str(source), findings)
    assert verdicts(check(str(sources[kind])), "1 months, 0001-02 to 0001-02") == {Verdict.OK}


def test_a_file_of_inputs_alone_is_looked_at_as_one_to_predict(rows: dict[str, np.ndarray], tmp_path: Path) -> None:
    whole = to_table(Snapshot("low-res", 0, rows["low-res"])).slice(0, 100)
    pacsv.write_csv(whole.drop_columns(list(TARGETS.columns)), tmp_path / "test.csv")
    found = check(str(tmp_path / "test.csv"))
    assert wrong(found) == []
    assert verdicts(found, "and no target: rows to predict") == {Verdict.NOTE}
    assert verdicts(found, "no humidity or cloud water is negative") == {Verdict.OK}
    # one target of many is a file that has lost the others
    pacsv.write_csv(whole.drop_columns(list(TARGETS.columns[1:])), tmp_path / "test.csv")
    assert "ptend_t_1" in wrong(check(str(tmp_path / "test.csv")))[0]


def test_inputs_alone_are_judged_by_their_ranges_too(rows: dict[str, np.ndarray], tmp_path: Path) -> None:
    table = to_table(Snapshot("low-res", 0, np.asfortranarray(spoil(rows["low-res"], "state_ps", lambda x: x / 100))))
    pq.write_table(table.drop_columns(list(TARGETS.columns)), tmp_path / "a.parquet")
    assert any("it looks like hPa" in text for text in wrong(check(str(tmp_path))))


def test_what_was_recorded_lies_within_the_known_ranges() -> None:
    low, high = known_range("low-res")
    inputs, targets = competition_columns(INPUTS), competition_columns(TARGETS)
    assert (low <= np.append(inputs.minimum, targets.minimum)).all()
    assert (high >= np.append(inputs.maximum, targets.maximum)).all()
    # in all low-res files, not only in those of the competition
    assert high[INPUTS["state_t"].start] > 1321


def spoil(matrix: np.ndarray, name: str, change: Callable[[np.ndarray], np.ndarray], share: float = 1.0) -> np.ndarray:
    spoiled = matrix.copy()
    layout, first = (INPUTS, 0) if name in {variable.name for variable in INPUTS.variables} else (TARGETS, INPUTS.width)
    columns = slice(first + layout[name].start, first + layout[name].stop)
    count = int(np.ceil(share * len(matrix)))
    spoiled[:count, columns] = change(spoiled[:count, columns])
    return spoiled


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("state_ps", lambda x: x / 100, "state_ps lies between .* known are .* Pa; it looks like hPa, expected Pa"),
        ("state_t", lambda x: x - 273.15, "it looks like degrees Celsius, expected K"),
        ("state_q0001", lambda x: x * 1000, "it looks like g/kg, expected kg/kg"),
        ("pbuf_ozone", lambda x: x * 1e6, "it looks like ppm, expected mol/mol"),
        ("state_u", lambda x: x + 1000, r"state_u_\d+ lies between .* known are .* m/s"),
        ("state_v", lambda x: np.where(np.arange(60) == 3, np.nan, x), r"NaN, 0 Inf and 0 fill values in column state_v_3 \(384\)"),
        ("state_v", lambda x: np.where(np.arange(60) == 3, np.inf, x), r"0 NaN, 384 Inf"),
        ("cam_in_SNOWHLAND", lambda x: x * 0 + MISSING, "0 NaN, 0 Inf and 384 fill values in column cam_in_SNOWHLAND"),
        ("state_t", lambda x: x * 0 + 9.969209968386869e36, "0 NaN, 0 Inf and 23040 fill values"),
        ("ptend_u", lambda x: x + 1e-5, r"the ablated targets are 0, which fails in ptend_u_0 \(384 of 384 rows\)"),
        ("ptend_q0002", lambda x: -x, "ptend_q0002 is -state_q0002/1200 on levels 12 to 26, which fails in ptend_q0002_"),
        ("state_q0003", lambda x: x - 1e-7, "no humidity or cloud water is negative, which fails in state_q0003_"),
        ("cam_in_OCNFRAC", lambda x: x * 0 + 0.5, "the fractions of ice, land and ocean sum to 1, which fails"),
        ("cam_out_PRECC", lambda x: x * 3, "columns gain .* of water, precipitation takes"),
    ],
)
def test_what_is_wrong_with_values_is_found(
    rows: dict[str, np.ndarray], tmp_path: Path, name: str, change: Callable[[np.ndarray], np.ndarray], sentence: str
) -> None:
    pq.write_table(to_table(Snapshot("low-res", 0, np.asfortranarray(spoil(rows["low-res"], name, change)))), tmp_path / "a.parquet")
    assert any(re.search(sentence, text) for text in wrong(check(str(tmp_path))))


def test_tendencies_of_the_wrong_sign_break_the_water_budget(rows: dict[str, np.ndarray], tmp_path: Path) -> None:
    matrix = rows["low-res"].copy()
    matrix[:, INPUTS.width : INPUTS.width + 360] *= -1
    pq.write_table(to_table(Snapshot("low-res", 0, np.asfortranarray(matrix))), tmp_path / "a.parquet")
    assert Verdict.WRONG in verdicts(check(str(tmp_path)), "of water, precipitation takes")


def test_momentum_from_nowhere_is_noted(rows: dict[str, np.ndarray], tmp_path: Path) -> None:
    matrix = spoil(rows["low-res"], "ptend_u", lambda x: np.where(np.arange(60) < 12, x, np.abs(x)))
    pq.write_table(to_table(Snapshot("low-res", 0, np.asfortranarray(matrix))), tmp_path / "a.parquet")
    assert verdicts(check(str(tmp_path)), "of momentum net") == {Verdict.NOTE}


def test_a_few_strange_values_are_noted(rows: dict[str, np.ndarray], tmp_path: Path) -> None:
    for name, change, words in (
        ("state_u", lambda x: x + 1000, "values of state_u lie well outside"),
        ("state_q0003", lambda x: x - 1e-9, "no humidity or cloud water is negative"),
    ):
        matrix = spoil(rows["low-res"], name, change, share=0.005)
        pq.write_table(to_table(Snapshot("low-res", 0, np.asfortranarray(matrix))), tmp_path / "a.parquet")
        findings = check(str(tmp_path))
        assert wrong(findings) == []
        assert verdicts(findings, words) == {Verdict.NOTE}


def test_level_26_of_high_res_need_not_be_exact(rows: dict[str, np.ndarray], tmp_path: Path) -> None:
    for kind, expected in (("high-res", Verdict.OK), ("low-res", Verdict.WRONG)):
        matrix = spoil(rows[kind], "ptend_q0002", lambda x: np.where(np.arange(60) == 26, x - 1e-15, x))
        pq.write_table(to_table(Snapshot(kind, 0, np.asfortranarray(matrix))), tmp_path / "a.parquet")
        assert verdicts(check(str(tmp_path)), "ptend_q0002 is -state_q0002/1200") == {expected}


def test_ids_that_stand_twice_and_months_of_another_name_are_wrong(rows: dict[str, np.ndarray], tmp_path: Path) -> None:
    table = to_table(Snapshot("low-res", FIRST_MONTH.steps, rows["low-res"]))
    pq.write_table(pa.concat_tables([table, table.slice(0, 1)]), tmp_path / "0001-02.parquet")
    findings = check(str(tmp_path))
    assert verdicts(findings, "1 sample ids stand more than once, such as low-res_0002016_00000") == {Verdict.WRONG}
    assert verdicts(findings, "rows are of 0001-03 to 0001-03, expected 0001-02 as in its name") == {Verdict.WRONG}


@pytest.mark.parametrize(
    ("stream", "offset", "expected"),
    [("mli", 1, Verdict.WRONG), ("mlo", 1, Verdict.WRONG), ("mlo", 2, Verdict.WRONG), ("mlo", 0, Verdict.OK)],
)
def test_a_clock_that_disagrees_with_the_name_is_found(
    sources: dict[str, Path], tmp_path: Path, stream: str, offset: int, expected: Verdict
) -> None:
    month = tmp_path / "0001-02"
    month.mkdir()
    for name in ("mli", "mlo"):
        (month / file_name(name, 0)).write_bytes((sources["low-res"] / "0001-02" / file_name(name, 0)).read_bytes())
    with netCDF4.Dataset(month / file_name(stream, 0), "a") as dataset:
        dataset.variables["tod"][...] = 1200 * offset
    findings = check(str(tmp_path))
    words = "agree with its name" if expected is Verdict.OK else f"and tod {1200 * offset}, expected 10201 and 0 as in its name"
    assert expected in verdicts(findings, words)
    assert bool(wrong(findings)) == (expected is Verdict.WRONG)


def test_a_missing_partner_or_variable_is_a_finding(sources: dict[str, Path], tmp_path: Path) -> None:
    month = tmp_path / "0001-02"
    month.mkdir()
    mli = month / file_name("mli", 0)
    mli.write_bytes((sources["low-res"] / "0001-02" / mli.name).read_bytes())
    assert "E3SM-MMF.mli.0001-02-01-00000.nc (no mlo)" in wrong(check(str(mli)))[0]
    (month / file_name("mlo", 0)).write_bytes(mli.read_bytes())
    assert "variable cam_out_NETSW is missing" in wrong(check(str(tmp_path)))[0]


def copy_pair(source: Path, month: Path, step: int, streams: tuple[str, ...] = ("mli", "mlo")) -> None:
    """The files of the first step as those of another one."""
    month.mkdir(parents=True, exist_ok=True)
    for stream in streams:
        shutil.copy(source / "0001-02" / file_name(stream, 0), month / file_name(stream, step))


@pytest.mark.parametrize("lost", ["mli", "mlo"])
def test_steps_without_both_files_are_counted_in_all_months_and_the_first_whole_pair_is_read(
    sources: dict[str, Path], tmp_path: Path, lost: str
) -> None:
    train, march = tmp_path / "train", FIRST_MONTH + 1
    kept = "mlo" if lost == "mli" else "mli"
    for step in (0, 5):
        copy_pair(sources["low-res"], train / "0001-02", step, (kept,))
    copy_pair(sources["low-res"], train / "0001-02", 3)
    for step in range(6):
        copy_pair(sources["low-res"], train / "0001-03", march.first_step + step, (kept,) if step in (1, 2) else ("mli", "mlo"))
    findings = check(str(tmp_path))
    names = [file_name(kept, step) for step in (0, 5, march.first_step + 1)]
    told = f"4 steps lack one of the two files: {names[0]} (no {lost}), {names[1]} (no {lost}), {names[2]} (no {lost}) and 1 more"
    assert verdicts(findings, told) == {Verdict.NOTE}
    assert verdicts(findings, "leapray convert --incomplete skip") == {Verdict.NOTE}
    assert verdicts(findings, "5 steps have both files; 2 months, 0001-02 to 0001-03") == {Verdict.OK}
    assert file_name("mli", 3) in findings[0].text
    # its clock is that of the step that it was copied from
    assert all("has ymd 10201 and tod 0" in text for text in wrong(findings))


def test_a_folder_in_which_no_step_has_both_files_is_wrong(sources: dict[str, Path], tmp_path: Path) -> None:
    copy_pair(sources["low-res"], tmp_path, 0, ("mli",))
    copy_pair(sources["low-res"], tmp_path, 1, ("mlo",))
    assert wrong(check(str(tmp_path))) == [
        f"no step has both files; 2 steps lack one of the two files: {file_name('mli', 0)} (no mlo), {file_name('mlo', 1)} (no mli)"
    ]


def test_only_the_months_beside_the_first_one_are_listed(sources: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for month in (FIRST_MONTH, FIRST_MONTH + 1, FIRST_MONTH + 2):
        copy_pair(sources["low-res"], tmp_path / "low-res" / str(month), month.first_step)
        copy_pair(sources["low-res"], tmp_path / "other" / str(month), month.first_step)
    listed: list[str] = []
    entries = walking.entries
    monkeypatch.setattr(walking, "entries", lambda url: listed.append(url) or entries(url))
    assert verdicts(check(str(tmp_path)), "3 steps have both files; 3 months, 0001-02 to 0001-04") == {Verdict.OK}
    assert len(listed) == len(set(listed)) == 5
    assert not [url for url in listed if "other" in url]


def test_folders_without_data_are_passed_over(sources: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "a_notes" / "deep").mkdir(parents=True)
    (tmp_path / "a_notes" / "README.md").write_text("notes")
    shutil.copytree(sources["low-res"], tmp_path / "train")
    assert verdicts(check(str(tmp_path)), "1 months, 0001-02 to 0001-02") == {Verdict.OK}


def test_no_more_rows_than_a_sample_are_read(rows: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(to_table(Snapshot("low-res", 0, rows["low-res"])), tmp_path / "a.parquet", row_group_size=100)
    assert verdicts(check(str(tmp_path)), f"100 rows of {tmp_path}/a.parquet were read") == {Verdict.OK}
    assert verdicts(check(str(tmp_path)), "the first of 384 rows") == {Verdict.OK}


def test_what_holds_no_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"neither ClimSim files such as E3SM-MMF\.mli.* nor \.parquet or \.csv files"):
        check(str(tmp_path))
    with pytest.raises(UserError, match="kind 'ocean' is unknown"):
        check(str(tmp_path), "ocean")


def test_the_verb_prints_a_line_each_and_fails_if_anything_is_wrong(
    sources: dict[str, Path], rows: dict[str, np.ndarray], tmp_path: Path
) -> None:
    good = CliRunner().invoke(app, ["check", str(sources["low-res"])])
    assert good.exit_code == 0
    assert all(line.split()[0] in ("ok", "note") for line in good.output.splitlines())
    pq.write_table(
        to_table(Snapshot("low-res", 0, np.asfortranarray(spoil(rows["low-res"], "state_ps", lambda x: x / 100)))), tmp_path / "a.parquet"
    )
    bad = CliRunner().invoke(app, ["check", str(tmp_path)])
    assert isinstance(bad.exception, UserError)
    assert "it looks like hPa" in str(bad.exception)
    assert any(line.startswith("wrong") for line in bad.output.splitlines())


def test_ids_like_the_competitions_are_not_taken_for_its_rows(rows: dict[str, np.ndarray], tmp_path: Path) -> None:
    """Rows of January of year 8 that someone numbered from train_0 on."""
    table = to_table(Snapshot("low-res", 0, rows["low-res"])).drop_columns(["kind", "step", "ncol"])
    table = table.set_column(0, "sample_id", pa.array([f"train_{row}" for row in range(len(table))]))
    (tmp_path / "year=8" / "month=1").mkdir(parents=True)
    for place, words in (
        (tmp_path / "part-0.parquet", "rows tell nothing of when they are, not their steps"),
        (tmp_path / "year=8" / "month=1" / "part-0.parquet", "rows tell the month 0008-01 of its name or folder, not their steps"),
    ):
        pq.write_table(table, place)
        for source in (place, place.parent):
            findings = check(str(source), "low-res")
            assert verdicts(findings, words) == {Verdict.NOTE}
            assert not verdicts(findings, "0001-02")
            assert bool(verdicts(findings, "their ids look like the competition's")) == (place.parent == tmp_path)
        place.unlink()
    # in its own file they count
    pq.write_table(table, tmp_path / "train.parquet")
    assert verdicts(check(str(tmp_path)), "rows are of steps 0 to 0, 0001-02 to 0001-02") == {Verdict.OK}
