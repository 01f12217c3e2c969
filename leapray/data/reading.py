"""The scaled rows of prepared data, whichever form they lie in: shards as they are, flat files through the same transform."""

from __future__ import annotations

from leapray import storage
from leapray.data import flat
from leapray.data.clean import Tally, clean, scale, stack
from leapray.data.shards import Manifest, Rows, ShardFile, read_shard
from leapray.data.transform import Transform
from leapray.errors import UserError


def read_file(manifest: Manifest, index: int, transform: Transform, *, verify: bool = True) -> Rows:
    """Scaled rows of one file of a manifest, in its order; a shard's checksums are compared when ``verify`` says so.

    Raises UserError when it is damaged, or holds other rows than the manifest says.
    """
    file = manifest.files[index]
    if isinstance(file, ShardFile):
        url = storage.join(manifest.url, file.name)
        rows = read_shard(url, verify=verify)
        _require_widths(url, rows, transform)
    else:
        url = file.piece.path
        blocks = clean(
            flat.read_piece(file.piece, transform.variables, kind=manifest.kind),
            url,
            manifest.bad_rows,
            Tally.empty(transform.variables),
        )
        parts = [scale(block, transform) for block in blocks]
        if not parts:
            raise UserError(f"{url}: holds no rows now, but had {file.rows} when it was prepared; prepare anew")
        rows = stack(parts)
    if len(rows["row"]) != file.rows:
        raise UserError(f"{url}: holds {len(rows['row'])} rows, but its manifest says {file.rows}; prepare anew")
    return rows


def _require_widths(url: str, rows: Rows, transform: Transform) -> None:
    """Raise UserError for a shard of other columns than the transform of its directory gives."""
    found = tuple(rows[name].shape[1] for name in ("inputs", "targets"))
    expected = (transform.inputs.mean.numel(), transform.targets.mean.numel())
    if found != expected:
        raise UserError(
            f"{url}: holds {found[0]} inputs and {found[1]} targets a row, expected {expected[0]} and {expected[1]}; prepare anew"
        )
