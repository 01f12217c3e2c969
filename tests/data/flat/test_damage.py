"""Damaged and odd files: each gives data, where the damage cannot be seen, or one sentence that names the file. Nothing else."""

import random
import subprocess
import sys
import warnings
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from leapray.climsim.calendar import FIRST_MONTH
from leapray.climsim.netcdf import Snapshot, read_pair
from leapray.data.flat import Selection, read_piece, survey, to_table
from leapray.errors import UserError
from leapray.evaluation import tables
from tests.columns import TARGETS
from tests.data.flat.test_flat import competition_table, replaced, values
from tests.official_layout import write_pair

TIMES = 12


def read_table(source: str) -> int:
    """Rows of a file as predictions and truth are read."""
    return len(tables.read_ids(source)) + sum(len(targets) for targets in tables.read_targets(source, TARGETS))


def read_flat(source: str) -> int:
    """Rows of a file, all of it touched."""
    found = survey(source)
    assert found.months is not None
    blocks = [block for piece in found.pieces(Selection(start=FIRST_MONTH)) for block in read_piece(piece, kind="low-res")]
    assert all(block.inputs.shape[1:] == (556,) and len(block.sample_id.to_pylist()) == len(block.row) for block in blocks)
    return sum(len(block.row) for block in blocks)


def survives(read: Callable[[], object], name: str) -> None:
    """Nothing but data or one sentence that names the file."""
    sentence = name
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            read()
        except UserError as error:
            sentence = str(error)
    assert name in sentence
    assert "\n" not in sentence
    assert len(sentence) < 600


def flip(content: bytes, chance: random.Random, start: int = 0) -> bytes:
    spoiled = bytearray(content)
    for _ in range(chance.randint(1, 20)):
        spoiled[chance.randrange(start, len(spoiled))] ^= 1 << chance.randrange(8)
    return bytes(spoiled)


def zero(content: bytes, chance: random.Random) -> bytes:
    start, size = chance.randrange(len(content)), chance.choice([8, 512, 4096])
    return content[:start] + bytes(min(size, len(content) - start)) + content[start + size :]


def exchange(content: bytes, chance: random.Random) -> bytes:
    start, stop = sorted(chance.sample(range(len(content)), 2))
    size = min(256, stop - start)
    return (
        content[:start]
        + content[stop : stop + size]
        + content[start + size : stop]
        + content[start : start + size]
        + content[stop + size :]
    )


DAMAGE: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "flipped bits": flip,
    "flipped bits in the last quarter": lambda content, chance: flip(content, chance, 3 * len(content) // 4),
    "cut off": lambda content, chance: content[: chance.randrange(len(content))],
    "a block of zeros": zero,
    "blocks exchanged": exchange,
    "garbage behind": lambda content, chance: content + chance.randbytes(chance.randint(1, 1000)),
    "garbage inside": lambda content, chance: content[: len(content) // 2] + chance.randbytes(9) + content[len(content) // 2 :],
    "empty": lambda content, chance: b"",
}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("good")
    table = pa.concat_tables([to_table(Snapshot("low-res", step, values(3, step))) for step in (0, 7)])
    pq.write_table(table, folder / "ours.parquet", compression="lz4", use_dictionary=["kind"], write_statistics=["step"])
    pq.write_table(competition_table(values(6)), folder / "pandas.parquet")
    pacsv.write_csv(table, folder / "a.csv")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["ours.parquet", "pandas.parquet", "a.csv"])
def test_flat_files_survive(tmp_path: Path, good: dict[str, bytes], name: str, damage: str) -> None:
    path = tmp_path / name.replace("pandas", "0001-02")
    for seed in range(TIMES):
        path.write_bytes(DAMAGE[damage](good[name], random.Random(f"{name} {damage} {seed}")))
        survives(lambda: read_flat(str(path)), path.name)
        survives(lambda: read_table(str(path)), path.name)


def read_damaged_pairs(folder: Path, container: str, stream: str, damage: str) -> None:
    pair = write_pair(folder, 0, container=container)
    path = Path(getattr(pair, stream))
    content = path.read_bytes()
    for seed in range(TIMES):
        path.write_bytes(DAMAGE[damage](content, random.Random(f"{container} {stream} {damage} {seed}")))
        survives(lambda: read_pair(pair), path.name)


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("stream", ["mli", "mlo"])
def test_classic_pairs_survive(tmp_path: Path, stream: str, damage: str) -> None:
    read_damaged_pairs(tmp_path, "NETCDF3_64BIT_DATA", stream, damage)


# in a process of its own: where the HDF5 library loops for ever, its thread would keep a core until the process ends
HDF5_PAIRS = """
import sys
from pathlib import Path
from leapray.climsim import netcdf
from tests.data.flat.test_damage import DAMAGE, read_damaged_pairs

netcdf._HDF5_SECONDS = 5.0
for damage in DAMAGE:
    read_damaged_pairs(Path(sys.argv[1]), "NETCDF4", sys.argv[2], damage)
"""


@pytest.mark.parametrize("stream", ["mli", "mlo"])
def test_hdf5_pairs_survive(tmp_path: Path, stream: str) -> None:
    root = Path(__file__).parents[3]
    ended = subprocess.run([sys.executable, "-c", HDF5_PAIRS, tmp_path, stream], cwd=root, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_files_of_another_type_than_their_name_are_refused(tmp_path: Path, good: dict[str, bytes], suffix: str) -> None:
    path = tmp_path / f"0001-02{suffix}"
    for name, content in good.items():
        if not name.endswith(suffix):
            path.write_bytes(content)
            with pytest.raises(UserError, match=f"0001-02{suffix}: "):
                read_flat(str(path))


def test_a_folder_with_the_name_of_a_file_is_looked_into(tmp_path: Path, good: dict[str, bytes]) -> None:
    (tmp_path / "x.parquet").mkdir()
    with pytest.raises(UserError, match=r"no \.parquet or \.csv files"):
        read_flat(str(tmp_path))
    (tmp_path / "x.parquet" / "part-0.parquet").write_bytes(good["ours.parquet"])
    assert read_flat(str(tmp_path)) == 6


def decimals(table: pa.Table) -> pa.Table:
    return replaced(table, "state_ps", pa.array([Decimal("1.25")] * 3))


ODD: dict[str, tuple[Callable[[pa.Table], pa.Table], str | None]] = {
    "a list": (lambda table: replaced(table, "state_ps", pa.array([[1.0], [2.0], []])), "column state_ps has type list"),
    "a struct": (lambda table: replaced(table, "state_ps", pa.array([{"step": 1.0}] * 3)), "column state_ps has type struct"),
    "a decimal": (decimals, "column state_ps has type decimal128"),
    "a category": (
        lambda table: replaced(table, "state_ps", pa.array([1.0, 1.0, 2.0]).dictionary_encode()),
        None,
    ),
    "text": (lambda table: replaced(table, "state_ps", pa.array(["a", "b", "c"])), "column state_ps has type string"),
    "a truth value": (lambda table: replaced(table, "state_ps", pa.array([True, False, True])), "column state_ps has type bool"),
    "a date": (lambda table: replaced(table, "state_ps", pa.array([0, 1, 2], pa.timestamp("ms"))), "column state_ps has type timestamp"),
    "half floats": (lambda table: replaced(table, "state_ps", pa.array(np.ones(3, np.float16))), None),
    "nulls": (lambda table: replaced(table, "state_ps", pa.nulls(3)), None),
    "upper case": (
        lambda table: table.rename_columns([name.upper() for name in table.column_names]),
        "'SAMPLE_ID', which is spelt otherwise",
    ),
    "a column twice": (lambda table: table.append_column("state_ps", table["state_ps"]), "column state_ps stands more than once"),
    "no rows": (lambda table: table.slice(0, 0), "no rows"),
    "unicode ids": (lambda table: replaced(table, "sample_id", pa.array(["größe", "温度", "🌧"])), None),
    "ids that are numbers": (lambda table: replaced(table, "sample_id", pa.array([7, 8, 9])), None),
    "ids as categories": (lambda table: replaced(table, "sample_id", table["sample_id"].dictionary_encode()), None),
    "large ids": (lambda table: replaced(table, "sample_id", table["sample_id"].cast(pa.large_string())), None),
    "empty ids": (lambda table: replaced(table, "sample_id", pa.array(["a", None, "c"])), "sample_id has 1 empty values"),
    "ids in lists": (lambda table: replaced(table, "sample_id", pa.array([["a"], ["b"], ["c"]])), "column sample_id has type list"),
    "steps beyond int64": (
        lambda table: replaced(table, "step", pa.array([2**64 - 1] * 3, pa.uint64())),
        "column step has empty, negative or very",
    ),
    "steps beyond the key": (lambda table: replaced(table, "step", pa.array([2**32] * 3)), "column step has empty, negative or very large"),
    "negative columns": (lambda table: replaced(table, "ncol", pa.array([-1, 0, 1])), "column ncol has empty, negative or very large"),
    "columns beyond the key": (
        lambda table: replaced(table, "ncol", pa.array([1 << 24, 0, 1])),
        "expected whole numbers from 0 to 16777215",
    ),
    "steps that are dates": (
        lambda table: replaced(table, "step", pa.array([0, 1, 2], pa.timestamp("s"))),
        "column step has type timestamp",
    ),
    "steps with fractions": (
        lambda table: replaced(table, "step", pa.array([0.0, 1.0, 2.0])),
        "step has type double, expected a whole number",
    ),
    "an unknown kind": (lambda table: replaced(table, "kind", pa.array(["ocean"] * 3)), "column kind holds ocean, expected low-res"),
    "no kind": (lambda table: replaced(table, "kind", pa.nulls(3, pa.string())), "column kind holds None, expected low-res"),
    "kinds as categories": (lambda table: replaced(table, "kind", table["kind"].dictionary_encode()), None),
    "a kind in lists": (lambda table: replaced(table, "kind", pa.array([["low-res"]] * 3)), "column kind has type list"),
    "a nested step of another column": (lambda table: table.append_column("extra", pa.array([{"step": -1}] * 3)), None),
}


@pytest.mark.parametrize("what", ODD)
def test_odd_columns_are_read_or_named(tmp_path: Path, what: str) -> None:
    change, sentence = ODD[what]
    table = change(to_table(Snapshot("low-res", 5, values(3))))
    with pq.ParquetWriter(tmp_path / "a.parquet", table.schema) as writer:
        writer.write_table(table)
    if sentence is None:
        assert read_flat(str(tmp_path)) == 3
    else:
        with pytest.raises(UserError, match=sentence):
            read_flat(str(tmp_path))


def test_a_file_without_row_groups_holds_no_rows(tmp_path: Path) -> None:
    with pq.ParquetWriter(tmp_path / "a.parquet", to_table(Snapshot("low-res", 0, values(1))).schema):
        pass
    assert pq.read_metadata(tmp_path / "a.parquet").num_row_groups == 0
    with pytest.raises(UserError, match="no rows"):
        read_flat(str(tmp_path))
