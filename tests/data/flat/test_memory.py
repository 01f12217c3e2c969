"""A row group of any size is read in bounded memory: watched from outside, in a process that does nothing else."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from leapray.climsim.schema import KAGGLE
from leapray.data.flat.layout import wanted_columns

ROWS = 100_000
MOST_MB = 700
"""Streaming the same row group by pyarrow alone takes 2 900 MB: a page and a dictionary of every column."""

READ = """
import sys
from leapray.data.flat import read_piece, survey
(piece,) = survey(sys.argv[1], sample_id=False).pieces()
print(sum(len(block.row) for block in read_piece(piece)))
"""


def anonymous_mb(process: int) -> float:
    """Memory of a process's own, without the files that it has mapped or read; 0 once it is gone."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    return int(found[1]) / 1e3 if found else 0.0


def test_a_row_group_as_pandas_writes_it_is_read_in_bounded_memory(tmp_path: Path) -> None:
    path, names = tmp_path / "0001-02.parquet", wanted_columns(KAGGLE, targets=True)
    # columns that overlap in memory, so that only the file is large
    values = pa.array(np.random.default_rng(0).normal(size=ROWS + len(names)))
    pq.write_table(pa.table({name: values.slice(index, ROWS) for index, name in enumerate(names)}), path, row_group_size=ROWS)
    assert pq.read_metadata(path).num_row_groups == 1
    peak = 0.0
    with subprocess.Popen([sys.executable, "-c", READ, str(path)], stdout=subprocess.PIPE, text=True) as reader:
        while True:
            peak = max(peak, anonymous_mb(reader.pid))
            try:
                reader.wait(timeout=0.01)
                break
            except subprocess.TimeoutExpired:
                continue
        assert reader.stdout is not None
        assert (reader.returncode, reader.stdout.read()) == (0, f"{ROWS}\n")
    path.unlink()
    assert 8 * ROWS * len(names) / 1e6 > MOST_MB > peak > 0
