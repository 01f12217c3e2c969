"""What hostile tables and recipes may not do: take all memory or time, or command the terminal on which they are told of."""

import os
import struct
from pathlib import Path

import netCDF4
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from leapray import cli
from leapray.climsim.netcdf import Snapshot, read_pair
from leapray.climsim.schema import LEVELS
from leapray.data.flat import to_table
from leapray.errors import UserError
from leapray.evaluation import tables
from leapray.recipe.data import Source
from tests.columns import INPUTS
from tests.official_layout import write_pair
from tests.samples import random_rows
from tests.test_hostile import ESCAPE, sentence


def test_a_header_line_and_a_footer_that_do_not_end(tmp_path: Path) -> None:
    for name in ("x.csv", "x.parquet"):
        (tmp_path / name).write_bytes(b"sample_id,")
        os.truncate(tmp_path / name, 1 << 33)
    with (tmp_path / "x.parquet").open("r+b") as file:
        file.seek(-8, os.SEEK_END)
        file.write(struct.pack("<I", 2**32 - 100) + b"PAR1")
    sentence(lambda: tables.read_ids(str(tmp_path / "x.csv")), "x.csv: ", "its first line does not end in 1048576 bytes")
    sentence(lambda: tables.read_ids(str(tmp_path / "x.parquet")), "x.parquet: ", "its footer has 4294967196 bytes")


def test_ids_that_grow_when_they_are_decoded_and_that_command_a_terminal(tmp_path: Path) -> None:
    table, path = to_table(Snapshot("low-res", 0, random_rows(2))), tmp_path / "x.parquet"
    pq.write_table(table.set_column(0, "sample_id", pa.array(["x" * 10**7] * 2)), path)
    sentence(lambda: tables.read_ids(str(path)), "column sample_id of row group 0 takes")
    pq.write_table(table.set_column(0, "sample_id", pa.array([ESCAPE] * 2)), path)
    sentence(lambda: tables.read_ids(str(path)), r"\x1b[2Jevil\n stands there more than once")


def test_a_fraction_of_a_billion_digits_takes_no_time() -> None:
    months = {"train": {"start": "0001-02", "stop": "0001-03"}}
    with pytest.raises(ValueError, match="finite number"):
        Source(kind="low-res", path="x", fraction="1e999999999", **months)
    assert Source(kind="low-res", path="x", fraction="1 / 15", **months).fraction == 1 / 15


def test_a_small_netcdf_that_says_it_is_large(tmp_path: Path) -> None:
    pair = write_pair(tmp_path, 0, container="NETCDF4")
    with netCDF4.Dataset(pair.mli, "w") as dataset:
        dataset.createDimension("lev", LEVELS)
        dataset.createDimension("ncol", 10**6)
        for variable in INPUTS.variables:
            profile = variable.levels > 1
            dimensions, chunks = (("lev", "ncol"), (LEVELS, 1000)) if profile else (("ncol",), (1000,))
            dataset.createVariable(variable.name, "f8", dimensions, zlib=True, chunksizes=chunks)
    assert Path(pair.mli).stat().st_size < 1e5
    sentence(lambda: read_pair(pair), "says that it has 1000000 columns, expected 21600 at the most")


def test_what_is_told_on_the_command_line_commands_no_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise UserError(f"{ESCAPE}.parquet: {'x' * 10**6}")

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit) as exited:
        cli.main()
    said = capsys.readouterr().err
    assert exited.value.code == 2
    assert said.startswith(r"error: \x1b[2Jevil\n.parquet: xxx")
    assert said.count("\n") == 1
    assert len(said) < 5000
