"""netCDF pairs to flat parquet on Ray."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import netCDF4
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from leapray import storage
from leapray.cli import app
from leapray.climsim.calendar import FIRST_MONTH, file_name, month_of_step
from leapray.climsim.netcdf import Snapshot
from leapray.climsim.pairs import find_pairs
from leapray.climsim.row_keys import row_place
from leapray.climsim.schema import KAGGLE
from leapray.data.convert import INCOMPLETE, Conversion, GroupWriter, Settings, _rows_if_complete, convert, flat_writer, group_pairs
from leapray.data.flat import flat_schema, list_pieces, read_piece, survey, to_table
from leapray.data.flat.layout import SNAPSHOT_KEY, content_sums
from leapray.errors import UserError
from tests.official_layout import COLUMN_NAMES, expected_rows, write_pair

MARCH = FIRST_MONTH + 1


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def parquet(folder: Path) -> dict[str, bytes]:
    """What is made of the data alone, wherever it came from."""
    return {name: content for name, content in contents(folder).items() if name.endswith(".parquet")}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Three columns at every 7th step and some others, on both sides of the end of February and of a file."""
    folder = tmp_path / "source"
    near_march = range(MARCH.first_step - 9, MARCH.first_step + 9)
    for step in (0, 3, 7, 14, 168, 175, *near_march):
        write_pair(folder, step, columns=3)
    return folder


@pytest.mark.ray
def test_row_r_is_column_r_mod_n_of_step_r_div_n(ray_cluster: None, source: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    destination = tmp_path / "flat"
    result = convert(str(source), str(destination), stride=7, progress=lambda done, count: seen.append((done, count)))
    pairs = find_pairs(str(source), stride=7)
    assert seen[-1] == (len(pairs), len(pairs))
    assert result == Conversion("low-res", files=4, rows=3 * len(pairs), continued=0)
    assert sorted(path.name for path in destination.iterdir()) == [
        "_conversion",
        "_conversion.json",
        "low-res.0001-02.0000.parquet",
        "low-res.0001-02.0001.parquet",
        "low-res.0001-02.0011.parquet",
        "low-res.0001-03.0000.parquet",
    ]
    table = pa.concat_tables([pq.read_table(path) for path in sorted(destination.glob("*.parquet"))])
    matrix = np.stack([table[name].to_numpy() for name in COLUMN_NAMES], axis=1)
    assert matrix.tobytes() == np.concatenate([expected_rows(pair) for pair in pairs]).tobytes()
    blocks = [block for piece in list_pieces(str(destination)) for block in read_piece(piece, kind="low-res")]
    _, step, ncol = row_place(np.concatenate([block.row for block in blocks]))
    np.testing.assert_array_equal(step, np.repeat([pair.step for pair in pairs], 3))
    np.testing.assert_array_equal(ncol, np.tile(np.arange(3), len(pairs)))


@pytest.mark.ray
def test_months_apart_and_twice_equal_one_run_file_for_file(ray_cluster: None, source: Path, tmp_path: Path) -> None:
    once, apart = tmp_path / "once", tmp_path / "apart"
    convert(str(source), str(once), stride=7, phase=3)
    convert(str(source), str(apart), stride=7, phase=3, start=MARCH)
    convert(str(source), str(apart), stride=7, phase=3, stop=MARCH)
    assert contents(apart) == contents(once)
    result = convert(str(source), str(once), stride=7, phase=3)
    assert result.continued == result.files
    assert contents(apart) == contents(once)


@pytest.mark.ray
def test_an_interrupted_or_grown_conversion_continues(ray_cluster: None, source: Path, tmp_path: Path) -> None:
    destination = tmp_path / "flat"
    convert(str(source), str(destination), stride=7)
    whole = contents(destination)
    (destination / "low-res.0001-02.0001.parquet").unlink()
    late = [source / "0001-02" / name.name for name in (source / "0001-02").glob("*-01-08400.nc")]
    assert len(late) == 2
    for path in late:
        path.rename(path.with_suffix(".late"))
    other = tmp_path / "other"
    convert(str(source), str(other), stride=7)
    for path in late:
        path.with_suffix(".late").rename(path)
    assert convert(str(source), str(other), stride=7).continued == 3
    assert convert(str(source), str(destination), stride=7).continued == 3
    assert contents(destination) == contents(other) == whole


@pytest.mark.ray
def test_a_replaced_source_is_converted_again_and_a_moved_one_is_not(ray_cluster: None, source: Path, tmp_path: Path) -> None:
    destination = tmp_path / "flat"
    convert(str(source), str(destination), stride=7)
    whole = contents(destination)
    moved = source.rename(tmp_path / "moved")
    assert convert(str(moved), str(destination), stride=7).continued == 4
    assert contents(destination) == whole

    def warm(dataset: netCDF4.Dataset) -> None:
        for name in {"state_ps", "state_t"} & dataset.variables.keys():
            dataset.variables[name][:] += 1

    write_pair(moved, 7, columns=3, edit=warm)
    assert convert(str(moved), str(destination), stride=7).continued == 3
    changed = {name for name, content in contents(destination).items() if content != whole[name]}
    assert changed == {"low-res.0001-02.0000.parquet", "_conversion/low-res.0001-02.0000.parquet.json"}
    write_pair(moved, 7, columns=3)
    assert convert(str(moved), str(destination), stride=7).continued == 3
    assert parquet(destination) == {name: content for name, content in whole.items() if name.endswith(".parquet")}


@pytest.mark.ray
def test_a_file_that_was_not_noted_is_written_anew(ray_cluster: None, source: Path, tmp_path: Path) -> None:
    destination = tmp_path / "flat"
    convert(str(source), str(destination), stride=7)
    whole = contents(destination)
    (destination / "_conversion" / "low-res.0001-02.0001.parquet.json").unlink()
    assert convert(str(source), str(destination), stride=7).continued == 3
    assert contents(destination) == whole


@pytest.mark.ray
def test_a_damaged_file_is_written_anew(ray_cluster: None, source: Path, tmp_path: Path) -> None:
    destination = tmp_path / "flat"
    convert(str(source), str(destination), stride=7)
    whole = contents(destination)
    name = "low-res.0001-02.0001.parquet"
    (destination / name).write_bytes(whole[name][:-100])
    assert convert(str(source), str(destination), stride=7).continued == 3
    assert contents(destination) == whole


def left_out(destination: Path) -> list[str]:
    noted = destination / INCOMPLETE
    return json.loads(noted.read_text()) if noted.exists() else []


def partners(source: Path, stream: str, *steps: int) -> list[Path]:
    return [source / str(month_of_step(step)) / file_name(stream, step) for step in steps]


@pytest.mark.ray
@pytest.mark.parametrize("lost", ["mli", "mlo"])
def test_incomplete_steps_are_left_out_listed_and_converted_once_they_are_filled(
    ray_cluster: None, source: Path, tmp_path: Path, lost: str
) -> None:
    """Step 7 shares its file with complete steps; 168 and 175 are all of theirs."""
    whole, destination = tmp_path / "whole", tmp_path / "flat"
    rows = convert(str(source), str(whole), stride=7).rows
    away = partners(source, lost, 7, 168, 175)
    for path in away:
        path.rename(path.with_suffix(".away"))
    kept = "mlo" if lost == "mli" else "mli"
    names = [file_name(kept, step) for step in (7, 168, 175)]

    with pytest.raises(UserError, match=rf"{names[0]}: its .*{lost}.* is missing \(and 2 more like it\).*--incomplete skip"):
        convert(str(source), str(destination), stride=7)
    assert not destination.exists()

    first = convert(str(source), str(destination), stride=7, skip_incomplete=True)
    assert [Path(name).name for name in first.incomplete] == names == left_out(destination)
    assert first.rows == rows - 9 == sum(pq.read_metadata(path).num_rows for path in destination.glob("*.parquet"))
    before = contents(destination)
    again = convert(str(source), str(destination), stride=7, skip_incomplete=True)
    assert (again.continued, again.rows) == (again.files, first.rows)
    assert contents(destination) == before

    away[0].with_suffix(".away").rename(away[0])
    filled = convert(str(source), str(destination), stride=7, skip_incomplete=True)
    assert (filled.rows, filled.continued) == (rows - 6, filled.files - 1)
    assert left_out(destination) == names[1:]
    for path in away[1:]:
        path.with_suffix(".away").rename(path)
    assert convert(str(source), str(destination), stride=7).rows == rows
    assert contents(destination) == contents(whole)


@pytest.mark.ray
def test_months_apart_list_what_each_leaves_out(ray_cluster: None, source: Path, tmp_path: Path) -> None:
    steps = [14, MARCH.first_step + 5]
    for path in partners(source, "mlo", *steps):
        path.unlink()
    once, apart = tmp_path / "once", tmp_path / "apart"
    convert(str(source), str(once), skip_incomplete=True)
    assert left_out(once) == [file_name("mli", step) for step in steps]
    convert(str(source), str(apart), start=MARCH, skip_incomplete=True)
    assert left_out(apart) == [file_name("mli", steps[1])]
    convert(str(source), str(apart), stop=MARCH, skip_incomplete=True)
    assert contents(apart) == contents(once)


@pytest.mark.ray
def test_no_rows_stay_of_steps_that_became_incomplete(ray_cluster: None, source: Path, tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    rows = convert(str(source), str(before), stride=7).rows
    for path in partners(source, "mlo", 168, 175, 14):
        path.unlink()
    assert convert(str(source), str(before), stride=7, skip_incomplete=True).rows == rows - 9
    convert(str(source), str(after), stride=7, skip_incomplete=True)
    assert contents(before) == contents(after)


@pytest.mark.ray
def test_incomplete_steps_of_a_bucket_are_left_out_too(ray_cluster: None, bucket: str, tmp_path: Path) -> None:
    pairs = [write_pair(tmp_path, step, columns=3) for step in range(3)]
    for path in (pairs[0].mli, pairs[1].mli, pairs[1].mlo, pairs[2].mlo):
        storage.write_bytes(f"{bucket}/raw/{Path(path).name}", Path(path).read_bytes())
    assert convert(f"{bucket}/raw", f"{bucket}/flat", skip_incomplete=True).rows == 3
    assert storage.read_json(f"{bucket}/flat/{INCOMPLETE}") == [file_name("mli", 0), file_name("mlo", 2)]
    for path in (pairs[0].mlo, pairs[2].mli):
        storage.write_bytes(f"{bucket}/raw/{Path(path).name}", Path(path).read_bytes())
    assert convert(f"{bucket}/raw", f"{bucket}/flat").rows == 9
    assert not storage.exists(f"{bucket}/flat/{INCOMPLETE}")


def test_where_no_step_is_complete_nothing_is_converted(source: Path, tmp_path: Path) -> None:
    for path in source.rglob("*.mlo.*"):
        path.unlink()
    with pytest.raises(UserError, match=r"source: no step has both files; 24 steps lack"):
        convert(str(source), str(tmp_path / "flat"), skip_incomplete=True)
    write_pair(source, 0, columns=3)
    with pytest.raises(UserError, match="no pairs with step % 1 == 0 in month 0001-03, which"):
        convert(str(source), str(tmp_path / "flat"), start=FIRST_MONTH, stop=MARCH + 1, skip_incomplete=True)
    assert not (tmp_path / "flat").exists()


@pytest.mark.ray
def test_the_verb_names_what_it_leaves_out(ray_cluster: None, source: Path, tmp_path: Path) -> None:
    for path in partners(source, "mlo", 0, 3, 7, 14):
        path.unlink()
    told = CliRunner().invoke(app, ["convert", str(source), str(tmp_path / "flat"), "--incomplete", "skip"])
    assert told.exit_code == 0
    left, wrote = told.output.splitlines()[-2:]
    assert left.startswith(f"4 steps lack one of the two files: {file_name('mli', 0)} (no mlo), ")
    assert left.endswith(str(tmp_path / "flat" / INCOMPLETE))
    assert wrote.startswith("wrote 60 rows of low-res in ")


def test_a_file_is_complete_if_it_is_whole_and_holds_the_same_steps(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    assert _rows_if_complete(str(path), b"0,7") is None
    with flat_writer(str(path), b"0,7") as write:
        for step in (0, 7):
            write(to_table(Snapshot("low-res", step, np.zeros((3, 924)))))
    assert _rows_if_complete(str(path), b"0,7") == 6
    assert _rows_if_complete(str(path), b"0") is None
    content = path.read_bytes()
    footer = int.from_bytes(content[-8:-4], "little")
    for damaged in (b"", content[: len(content) // 2], content[:-1], content[: -8 - footer] + bytes(footer) + content[-8:]):
        path.write_bytes(damaged)
        assert _rows_if_complete(str(path), b"0,7") is None


@pytest.mark.ray
def test_another_setting_is_refused(ray_cluster: None, source: Path, tmp_path: Path) -> None:
    destination = tmp_path / "flat"
    convert(str(source), str(destination), stride=7, stop=MARCH)
    with pytest.raises(UserError, match=r"flat: holds a conversion of other settings \(stride: 7, now 1\)"):
        convert(str(source), str(destination))
    with pytest.raises(UserError, match=r"\(phase: 0, now 3\)"):
        convert(str(source), str(destination), stride=7, phase=3)
    (destination / "_conversion.json").unlink()
    with pytest.raises(UserError, match=r"holds \.parquet files but no _conversion\.json"):
        convert(str(source), str(destination), stride=7)


def spoil_nothing(dataset: netCDF4.Dataset) -> None:
    pass


def rename(dataset: netCDF4.Dataset) -> None:
    if "pbuf_SOLIN" in dataset.variables:
        dataset.renameVariable("pbuf_SOLIN", "pbuf_solin")


@pytest.mark.parametrize(
    ("columns", "kind", "edit", "sentence"),
    [
        (3, "low-res", rename, r"mli\.0001-02-01-08400\.nc: variable pbuf_SOLIN is missing"),
        (3, "aqua-planet", spoil_nothing, r"mli\.0001-02-01-08400\.nc: is aqua-planet, expected low-res as the first file is"),
        (4, "low-res", spoil_nothing, r"mli\.0001-02-01-08400\.nc: 4 columns, expected 3 as in the first file"),
    ],
)
@pytest.mark.ray
def test_a_bad_file_is_named_and_nothing_half_written_stays(
    ray_cluster: None, source: Path, tmp_path: Path, columns: int, kind: str, edit: Callable[[netCDF4.Dataset], None], sentence: str
) -> None:
    good, destination = tmp_path / "good", tmp_path / "flat"
    convert(str(source), str(good), stride=7)
    write_pair(source, 7, columns=columns, kind=kind, container="NETCDF4", edit=edit)
    with pytest.raises(UserError, match=sentence):
        convert(str(source), str(destination), stride=7)
    left = parquet(destination)
    assert left.items() <= parquet(good).items()
    assert "low-res.0001-02.0000.parquet" not in left
    write_pair(source, 7, columns=3)
    convert(str(source), str(destination), stride=7)
    assert parquet(destination) == parquet(good)


@pytest.mark.ray
def test_a_first_file_that_cannot_be_read_leaves_no_destination(ray_cluster: None, source: Path, tmp_path: Path) -> None:
    next(source.glob("0001-02/*mlo*-01-00000.nc")).write_bytes(b"CDF\x05")
    with pytest.raises(UserError, match=r"mlo\.0001-02-01-00000\.nc: not a netCDF file"):
        convert(str(source), str(tmp_path / "flat"), stride=7)
    assert not (tmp_path / "flat").exists()


def test_any_other_value_shows_in_the_footer(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(5, 924))
    source = tmp_path / "a.parquet"

    def fingerprint(*snapshots: np.ndarray) -> str:
        with flat_writer(str(source), b"0,7") as write:
            for step, values in zip((0, 7), snapshots, strict=True):
                write(to_table(Snapshot("low-res", step, values)))
        return survey(str(source)).fingerprint()

    def with_one(row: int, column: int, value: float) -> np.ndarray:
        changed = rows.copy()
        changed[row, column] = value
        return changed

    others = [
        with_one(row, column, value) for row, column in ((0, 0), (4, 923), (2, 500)) for value in (0.0, np.nextafter(rows[row, column], 9))
    ]
    found = [
        fingerprint(rows, 2 * rows),
        fingerprint(2 * rows, rows),
        fingerprint(rows[::-1], 2 * rows),
        fingerprint(rows[:, ::-1], 2 * rows),
        *(fingerprint(other, 2 * rows) for other in others),
        fingerprint(with_one(0, 0, -0.0), 2 * rows),
    ]
    assert len(set(found)) == len(found)
    assert fingerprint(rows, 2 * rows) == found[0]


def test_the_digest_of_values_is_of_their_bits_weighted_by_row() -> None:
    rows = np.random.default_rng(0).normal(size=(7, 924))
    bits = rows.copy().view(np.uint64).tolist()
    expected = [sum((2 * r + 1) * 0x9E3779B97F4A7C15 * bits[r][c] for r in range(7)) % 2**64 for c in range(924)]
    assert content_sums(np.asfortranarray(rows)).tolist() == expected


@pytest.mark.parametrize(("snapshot", "count", "groups"), [(384, 24, [9216]), (10_000, 3, [10_000] * 3), (21_600, 1, [10_800, 10_800])])
def test_row_groups_are_bounded(tmp_path: Path, snapshot: int, count: int, groups: list[int]) -> None:
    path = str(tmp_path / "a.parquet")
    schema = flat_schema(KAGGLE)
    table = pa.table([pa.nulls(snapshot, field.type) for field in schema], schema=schema.with_metadata({SNAPSHOT_KEY: ""}))
    with flat_writer(path, b"0") as write:
        for _ in range(count):
            write(table)
    metadata = pq.read_metadata(path)
    assert [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)] == groups


@pytest.mark.parametrize("stream", ["mli", "mlo"])
def test_a_file_whose_clock_is_of_another_step_is_refused_by_name(tmp_path: Path, stream: str) -> None:
    """Also one of the step after: in ClimSim's own files an mlo carries the time of its mli."""
    pairs = [write_pair(tmp_path / "raw", step, columns=2) for step in (0, 1)]
    other = write_pair(tmp_path / "other", 2, columns=2)
    Path(getattr(pairs[1], stream)).write_bytes(Path(getattr(other, stream)).read_bytes())
    sentence = rf"{file_name(stream, 1)}: has ymd 10201 and tod 2400, expected 10201 and 1200 as in its name"
    write = GroupWriter(Settings("low-res", 2, 1, 0, KAGGLE.name, KAGGLE.digest), KAGGLE, kind_is_given=False)
    for group in group_pairs(find_pairs(str(tmp_path / "raw")), str(tmp_path / "flat"), write.settings):
        with pytest.raises(UserError, match=sentence):
            write(group)
    assert not list((tmp_path / "flat").rglob("*.parquet"))
    # the first pair is looked at before anything is written
    with pytest.raises(UserError, match=sentence):
        convert(str(tmp_path / "raw"), str(tmp_path / "late"), stride=2, phase=1)
    assert not (tmp_path / "late").exists()


def test_a_file_without_a_clock_is_of_the_step_of_its_name(tmp_path: Path) -> None:
    pair = write_pair(tmp_path / "raw", 3, columns=2)
    for path in (pair.mli, pair.mlo):
        with netCDF4.Dataset(path, "a") as dataset:
            dataset.renameVariable("tod", "second")
    write = GroupWriter(Settings("low-res", 2, 1, 0, KAGGLE.name, KAGGLE.digest), KAGGLE, kind_is_given=False)
    (group,) = group_pairs([pair], str(tmp_path / "flat"), write.settings)
    assert write(group)["rows"] == 2


@pytest.mark.ray
def test_files_of_pairs_that_are_gone_are_refused_and_those_of_other_months_told(ray_cluster: None, source: Path, tmp_path: Path) -> None:
    destination = tmp_path / "flat"
    convert(str(source), str(destination), stride=7)
    before = contents(destination)
    for path in [*partners(source, "mli", 168, 175), *partners(source, "mlo", 168, 175)]:
        path.unlink()
    with pytest.raises(UserError, match=r"flat: holds low-res\.0001-02\.0001\.parquet of steps that have no pairs in .*source; remove"):
        convert(str(source), str(destination), stride=7)
    assert contents(destination) == before
    (destination / "low-res.0001-02.0001.parquet").unlink()
    notices: list[str] = []
    rows = convert(str(source), str(destination), stride=7, notice=notices.append).rows
    assert rows == sum(survey(str(file)).rows or 0 for file in destination.glob("*.parquet"))
    assert not notices
    # whole months may have been converted from another folder
    shutil.rmtree(source / "0001-03")
    convert(str(source), str(destination), stride=7, notice=notices.append)
    assert notices == [f"{destination}: keeps 1 file of months without pairs in {source}, 0001-03 to 0001-03"]
    convert(str(source), str(destination), stride=7, stop=MARCH, notice=notices.append)
    assert len(notices) == 1
