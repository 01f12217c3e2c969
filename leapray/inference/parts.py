"""Part files of a prediction: one for each piece of the input, beside it those of the members, and which of them are complete.

``DEST/part-NNNNNN.parquet`` holds ids, row keys and the targets in physical units, physics applied; it is the last file of its piece
to appear, and so seals it. ``DEST/_members/NAME/part-NNNNNN.parquet`` holds one member's own output, before the physics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from leapray import storage
from leapray.climsim.schema import SAMPLE_ID, Targets
from leapray.data.flat import Block
from leapray.errors import PassingError, UserError
from leapray.evaluation.metrics import TargetStatistics
from leapray.evaluation.tables import ROW, readable

MEMBERS = "_members"
_STATISTICS = "_training.json"

Write = Callable[[Block, np.ndarray, Sequence[np.ndarray]], None]
"""Takes rows, their predictions ``(n, t)``, and those of each member; fastest where they lie in memory column by column."""


def part(directory: str, index: int) -> str:
    """URL of a piece's part file below a prediction's directory, or below that of a member's."""
    return storage.join(directory, f"part-{index:06d}.parquet")


def member_directory(destination: str, name: str) -> str:
    return storage.join(destination, MEMBERS, name)


def sealed_rows(destination: str, index: int, members: Sequence[str] = ()) -> int | None:
    """Rows of a piece that is complete with those of its members, else None. Raises UserError where its part file is damaged."""
    url = part(destination, index)
    if not all(storage.exists(one) for one in (url, *(part(member_directory(destination, name), index) for name in members))):
        return None
    try:
        with readable(url), storage.open_input(url) as file:
            return int(pq.read_metadata(file).num_rows)
    except PassingError:
        raise
    except UserError as error:
        raise UserError(f"{error}; remove it, and it is made again") from error


def write_statistics(destination: str, statistics: TargetStatistics) -> None:
    """Leave beside a prediction what its skill is measured against: the statistics of the rows that its first model was trained on."""
    storage.write_json(storage.join(destination, _STATISTICS), statistics.to_dict() | {"targets": list(statistics.targets.names)})


def read_statistics(predictions: str) -> TargetStatistics | None:
    """What :func:`write_statistics` left beside predictions or a member's; None for others. Raises UserError where it is damaged."""
    url = storage.join(predictions.partition(f"/{MEMBERS}/")[0], _STATISTICS)
    if not storage.exists(url):
        return None
    values = storage.read_json(url)
    names = values.get("targets") if isinstance(values, dict) else None
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise UserError(f"{url}: does not name its targets; it was written by an earlier leapray, predict again")
    return TargetStatistics.from_dict(values, Targets.of(names), url)


@contextmanager
def part_writer(destination: str, index: int, targets: Targets, members: Sequence[str] = ()) -> Iterator[Write]:
    """A function that writes block after block to the part files of a piece, which appear when the context ends without an error."""
    schema = pa.schema([(SAMPLE_ID, pa.string()), (ROW, pa.int64()), *((name, pa.float64()) for name in targets.columns)])
    with ExitStack() as stack:
        # what is entered first is left last: the members' files are in their places when the seal is set
        sealing = stack.enter_context(_table_writer(part(destination, index), schema))
        own = [stack.enter_context(_table_writer(part(member_directory(destination, name), index), schema)) for name in members]

        def write(block: Block, predictions: np.ndarray, outputs: Sequence[np.ndarray]) -> None:
            for writer, values in zip([sealing, *own], [predictions, *outputs], strict=True):
                writer.write_table(_table(block, values, schema))

        yield write


@contextmanager
def _table_writer(url: str, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    # the doubles hardly ever repeat, so dictionaries and statistics only cost time
    options = {"compression": "lz4", "use_dictionary": False, "write_statistics": [ROW], "write_page_checksum": True}
    with storage.atomic_file(url) as file, pq.ParquetWriter(file, schema, **options) as writer:
        yield writer


def _table(block: Block, values: np.ndarray, schema: pa.Schema) -> pa.Table:
    columns = np.asfortranarray(values)
    arrays = [pa.array(columns[:, index]) for index in range(columns.shape[1])]
    return pa.Table.from_arrays([block.sample_id, pa.array(block.row), *arrays], schema=schema)
