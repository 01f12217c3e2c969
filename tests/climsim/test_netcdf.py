"""Reading ClimSim's netCDF pairs."""

import re
import subprocess
import sys
from pathlib import Path

import netCDF4
import numpy as np
import pytest

from leapray.climsim.calendar import FIRST_MONTH, Month
from leapray.climsim.netcdf import read_pair
from leapray.climsim.pairs import PairPath, find_pairs
from leapray.errors import UserError
from tests.official_layout import CONTAINERS, expected_rows, write_pair


@pytest.mark.parametrize("container", CONTAINERS)
def test_rows_equal_an_independent_computation_to_the_last_bit(tmp_path: Path, container: str) -> None:
    pair = write_pair(tmp_path, 5, columns=7, container=container)
    snapshot = read_pair(pair)
    assert (snapshot.kind, snapshot.step, snapshot.rows.dtype) == ("low-res", 5, np.float64)
    assert snapshot.rows.tobytes() == expected_rows(pair).tobytes()


@pytest.mark.parametrize("container", ["NETCDF3_64BIT_DATA", "NETCDF4"])
def test_bits_survive_fill_values_scale_attributes_and_nan(tmp_path: Path, container: str) -> None:
    def edit(dataset: netCDF4.Dataset) -> None:
        heat = dataset.variables["state_t"]
        heat.setncatts({"missing_value": 300.0, "scale_factor": 2.0, "add_offset": 1.0})
        heat.set_auto_maskandscale(False)
        heat[3] = [300.0, np.nan, -0.0, 5e-324]

    values = read_pair(write_pair(tmp_path, 0, container=container, edit=edit)).rows[:, 3]
    assert values.tobytes() == np.array([300.0, np.nan, -0.0, 5e-324]).tobytes()


def test_flat_columns_are_contiguous(tmp_path: Path) -> None:
    assert read_pair(write_pair(tmp_path, 0)).rows[:, 500].flags.c_contiguous


def test_the_kind_is_read_off_the_files(tmp_path: Path) -> None:
    for step, kind in enumerate(("low-res", "aqua-planet", "high-res")):
        assert read_pair(write_pair(tmp_path, step, kind=kind)).kind == kind


def test_without_ne_the_number_of_columns_tells_the_kind(tmp_path: Path) -> None:
    def forget(dataset: netCDF4.Dataset) -> None:
        dataset.delncattr("ne")

    assert read_pair(write_pair(tmp_path, 0, columns=384, edit=forget)).kind == "low-res"
    assert read_pair(write_pair(tmp_path, 1, columns=384, kind="aqua-planet", edit=forget)).kind == "aqua-planet"
    few = write_pair(tmp_path, 2, columns=3, edit=forget)
    with pytest.raises(UserError, match=r"02400\.nc: cannot tell the kind from 3 columns"):
        read_pair(few)
    assert read_pair(few, "high-res").kind == "high-res"
    with pytest.raises(UserError, match="kind 'ocean' is unknown, expected one of low-res"):
        read_pair(few, "ocean")


def test_snow_over_ice_and_pressure_need_not_be_there(tmp_path: Path) -> None:
    def drop(dataset: netCDF4.Dataset) -> None:
        for name in {"cam_in_SNOWHICE", "state_pmid"} & dataset.variables.keys():
            dataset.renameVariable(name, f"other_{name}")

    pair = write_pair(tmp_path, 0, container="NETCDF4", edit=drop)
    assert read_pair(pair).rows.tobytes() == expected_rows(pair).tobytes()


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("lost", [1, 40, 3000, 20_000])
def test_a_truncated_file_is_refused_by_name(tmp_path: Path, container: str, lost: int) -> None:
    pair = write_pair(tmp_path, 0, container=container)
    content = Path(pair.mlo).read_bytes()
    Path(pair.mlo).write_bytes(content[:-lost])
    with pytest.raises(UserError, match=r"E3SM-MMF\.mlo\.0001-02-01-00000\.nc: not a netCDF file or a truncated one"):
        read_pair(pair)


def test_a_truncation_that_only_reaches_unused_variables_is_seen(tmp_path: Path) -> None:
    def append(dataset: netCDF4.Dataset) -> None:
        dataset.createVariable("unused", "f8", ("lev", "ncol"))[...] = 1.0

    pair = write_pair(tmp_path, 0, edit=append)
    Path(pair.mli).write_bytes(Path(pair.mli).read_bytes()[:-8])
    with pytest.raises(UserError, match="truncated"):
        read_pair(pair)


# in a process of its own, which the thread that was given up must not keep from ending with its status
GIVE_UP = """
import sys
import threading
from leapray.climsim import netcdf
from leapray.errors import UserError

netcdf._HDF5_SECONDS = 1.0
if sys.argv[1] == "never":
    netcdf.netCDF4.Dataset = lambda *arguments, **options: threading.Event().wait()
for pair in (netcdf.PairPath(0, *sys.argv[2:4]), netcdf.PairPath(0, *sys.argv[4:6])):
    try:
        print(netcdf.read_pair(pair).step)
    except UserError as error:
        print(error)
sys.exit(7)
"""


def give_up(opening: str, *pairs: PairPath) -> list[str]:
    """What is said of each pair by a process that waits 1 s for HDF5 content; ``opening`` takes as long as it does, or for ever."""
    paths = [path for pair in pairs for path in (pair.mli, pair.mlo)]
    ended = subprocess.run([sys.executable, "-c", GIVE_UP, opening, *paths], capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stderr) == (7, "")
    return ended.stdout.splitlines()


def test_a_file_that_never_opens_is_given_up_by_name_and_ends_all_reading(tmp_path: Path) -> None:
    endless, other = (write_pair(tmp_path / name, 0, container="NETCDF4") for name in "ab")
    assert give_up("never", endless, other) == [f"{endless.mli}: could not be opened within 1 s; it is damaged"] * 2


def test_a_global_heap_on_which_the_hdf5_library_loops_for_ever_is_refused(tmp_path: Path) -> None:
    endless, other = write_pair(tmp_path, 0, container="NETCDF4"), write_pair(tmp_path, 1)
    content = bytearray(Path(endless.mlo).read_bytes())
    first_object = content.index(b"GCOL") + 16
    content[first_object : first_object + 16] = bytes(16)
    Path(endless.mlo).write_bytes(content)
    refused, read = give_up("as it does", endless, other)
    # a library that sees the object without a size may refuse it itself
    assert re.fullmatch(r"\S+mlo\S+\.nc: (could not be opened within 1 s; it is damaged|not a netCDF file or a truncated one .*)", refused)
    assert read == "0"


@pytest.mark.parametrize("content", [b"", b"CDF", b"<html>404</html>" * 9])
def test_what_is_not_netcdf_is_refused(tmp_path: Path, content: bytes) -> None:
    pair = write_pair(tmp_path, 0)
    Path(pair.mli).write_bytes(content)
    with pytest.raises(UserError, match="not a netCDF file"):
        read_pair(pair)


def test_a_missing_variable_is_named(tmp_path: Path) -> None:
    pair = write_pair(tmp_path, 0, container="NETCDF4", edit=lambda dataset: dataset.renameVariable("state_q0003", "q3"))
    with pytest.raises(UserError, match=r"mli.*: variable state_q0003 is missing"):
        read_pair(pair)


@pytest.mark.parametrize(
    ("dimensions", "dtype", "sentence"),
    [
        (("ncol", "lev"), "f8", r"state_u has dimensions \(ncol=4, lev=60\), expected \(lev=60, ncol\)"),
        (("ncol",), "f8", r"state_u has dimensions \(ncol=4\), expected \(lev=60, ncol\)"),
        (("half", "ncol"), "f8", r"state_u has dimensions \(half=30, ncol=4\), expected \(lev=60, ncol\)"),
        (("lev", "ncol"), "f4", "state_u has type float32, expected float64"),
    ],
)
def test_another_layout_is_refused_with_what_was_expected(tmp_path: Path, dimensions: tuple[str, ...], dtype: str, sentence: str) -> None:
    def replace(dataset: netCDF4.Dataset) -> None:
        dataset.createDimension("half", 30)
        dataset.renameVariable("state_u", "before")
        dataset.createVariable("state_u", dtype, dimensions)

    with pytest.raises(UserError, match=sentence):
        read_pair(write_pair(tmp_path, 0, container="NETCDF4", edit=replace))


def test_other_levels_are_refused(tmp_path: Path) -> None:
    def replace(dataset: netCDF4.Dataset) -> None:
        dataset.renameDimension("lev", "interfaces")
        dataset.createDimension("lev", 72)
        dataset.renameVariable("state_t", "before")
        dataset.createVariable("state_t", "f8", ("lev", "ncol"))

    with pytest.raises(UserError, match=r"state_t has dimensions \(lev=72, ncol=4\), expected \(lev=60, ncol\)"):
        read_pair(write_pair(tmp_path, 0, container="NETCDF4", edit=replace))


def test_a_pair_whose_columns_differ_is_refused(tmp_path: Path) -> None:
    four, five = write_pair(tmp_path / "four", 0), write_pair(tmp_path / "five", 0, columns=5)
    with pytest.raises(UserError, match=r"five.*mlo.*: 5 columns, expected 4"):
        read_pair(PairPath(0, four.mli, five.mlo))


def test_pairs_are_chosen_by_absolute_step_and_month(tmp_path: Path) -> None:
    march = (FIRST_MONTH + 1).first_step
    steps = [0, 3, 7, 14, 15, march - 1, march, march + 5]
    for step in reversed(steps):
        write_pair(tmp_path, step, columns=1)
    assert [pair.step for pair in find_pairs(str(tmp_path))] == steps
    assert [pair.step for pair in find_pairs(str(tmp_path), stride=7)] == [step for step in steps if step % 7 == 0]
    assert [pair.step for pair in find_pairs(str(tmp_path), stride=7, phase=1)] == [step for step in steps if step % 7 == 1]
    assert [pair.step for pair in find_pairs(str(tmp_path), start=Month(1, 3))] == steps[-2:]
    assert [pair.step for pair in find_pairs(str(tmp_path), stop=Month(1, 3))] == steps[:-2]
    pair = find_pairs(str(tmp_path))[1]
    assert read_pair(pair).rows.tobytes() == expected_rows(pair).tobytes()


def test_a_flat_folder_and_foreign_files_are_fine(tmp_path: Path) -> None:
    pair = write_pair(tmp_path, 0, columns=1)
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in (pair.mli, pair.mlo):
        Path(path).rename(flat / Path(path).name)
    (flat / "ClimSim_low-res_grid-info.nc").write_bytes(b"")
    assert [found.step for found in find_pairs(str(flat))] == [0]


def test_a_file_without_its_partner_is_named(tmp_path: Path) -> None:
    pair, other = write_pair(tmp_path, 0), write_pair(tmp_path, 8)
    Path(pair.mlo).unlink()
    with pytest.raises(UserError, match=r"mli\.0001-02-01-00000\.nc: its E3SM-MMF\.mlo\.0001-02-01-00000\.nc is missing"):
        find_pairs(str(tmp_path))
    assert len(find_pairs(str(tmp_path), stride=7, phase=1)) == 1
    Path(pair.mli).unlink()
    Path(other.mli).unlink()
    with pytest.raises(UserError, match=r"mlo\.0001-02-01-09600\.nc: its E3SM-MMF\.mli\.0001-02-01-09600\.nc is missing"):
        find_pairs(str(tmp_path))


def test_a_step_that_stands_twice_is_refused(tmp_path: Path) -> None:
    write_pair(tmp_path / "a", 0)
    write_pair(tmp_path / "b", 0)
    with pytest.raises(UserError, match=r"b/.*the same step is also in .*a/"):
        find_pairs(str(tmp_path))


def test_nothing_to_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no ClimSim files, expected names such as E3SM-MMF\.mli\.0001-02-01-00000\.nc"):
        find_pairs(str(tmp_path))
    write_pair(tmp_path, 1)
    with pytest.raises(UserError, match="no files in the months and with the stride"):
        find_pairs(str(tmp_path), stride=2)
    with pytest.raises(UserError, match="in month 0001-03, 0001-04, which 0001-02 to 0001-05 asks for"):
        find_pairs(str(tmp_path), start=FIRST_MONTH, stop=Month(1, 5))


@pytest.mark.parametrize(("stride", "phase"), [(0, 0), (-1, 0), (7, 7), (7, -1)])
def test_an_impossible_stride_or_phase_is_refused(tmp_path: Path, stride: int, phase: int) -> None:
    with pytest.raises(UserError, match=f"stride {stride} with phase {phase}"):
        find_pairs(str(tmp_path), stride=stride, phase=phase)


def test_a_kind_of_another_grid_is_refused(tmp_path: Path) -> None:
    pair = write_pair(tmp_path, 0, kind="low-res")
    with pytest.raises(UserError, match=r"its grid is ne4, expected ne30, which is high-res's"):
        read_pair(pair, "high-res")


@pytest.mark.parametrize("time", ["0001-02-30-00000", "0001-13-01-00000", "0001-02-28-00007", "0001-02-28-86400"])
def test_a_name_that_tells_no_step_is_refused_not_passed_over(tmp_path: Path, time: str) -> None:
    write_pair(tmp_path, 0)
    (tmp_path / f"E3SM-MMF.mli.{time}.nc").write_bytes(b"")
    with pytest.raises(UserError, match=rf"{time}\.nc: its name tells no step"):
        find_pairs(str(tmp_path))


def test_files_with_land_are_no_aqua_planet_whatever_is_said(tmp_path: Path) -> None:
    pair = write_pair(tmp_path, 0)
    with pytest.raises(UserError, match=r"\.nc: has land, sea ice or snow, which an aqua-planet has not"):
        read_pair(pair, "aqua-planet")
