"""Flat parquet to a fitted transform and shuffled shards, on Ray Data: moments, then scatter, then gather.

Work is cut into groups of input pieces by their order alone, so that the number of workers changes nothing in the result. A split
whose manifest is there is finished and is not made again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from leapray import cluster, storage
from leapray.climsim.schema import EXACT, EXACT_SOURCE, INPUTS, STEP_SECONDS, TARGETS
from leapray.data import flat
from leapray.data.moments import Moments
from leapray.data.shards import (
    MANIFEST,
    SETTINGS,
    TRANSFORM,
    Manifest,
    Prepared,
    Rows,
    ShardFile,
    changed_settings,
    load_transform,
    open_prepared,
    prepare_settings,
    write_shard,
)
from leapray.data.shuffle import gather, scatter
from leapray.data.tasks import run_tasks
from leapray.data.transform import SCALINGS, Transform, fit_transform
from leapray.errors import UserError
from leapray.recipe import SPLITS, Data, Recipe

_SCATTER = ".scatter"
_WIDTH = INPUTS.width + TARGETS.width
_BYTES_PER_ROW = 8 * _WIDTH

Progress = Callable[[str, int, int], None]
"""Called with the name of the pass, the groups done and the groups in all."""
Notice = Callable[[str], None]
"""Called with one sentence about what is passed over in the input."""


@dataclass(frozen=True)
class Part:
    """One split of one source: its input pieces in groups, and where its shards go."""

    source: str
    split: str
    kind: str
    months: str
    groups: tuple[tuple[flat.Piece, ...], ...]
    buckets: int
    url: str

    @property
    def scatter_url(self) -> str:
        return storage.join(self.url, _SCATTER)


def prepare(recipe: Recipe, progress: Progress | None = None, notice: Notice | None = None) -> Prepared:
    """Make what is missing of a recipe's prepared directory and open it.

    Raises UserError for unreadable data, months without rows, non-finite values (``bad_rows: refuse``), duplicate rows, or a
    directory that another recipe prepared.
    """
    data = recipe.data
    SCALINGS.options(data.scaling)
    prepared = storage.absolute(data.prepared)
    parts = [
        _part(data, name, split, prepared, notice)
        for name, source in data.sources.items()
        for split in SPLITS
        if source.months(split) is not None
    ]
    _claim(prepared, data)
    if notice:
        for sentence in data.overlaps_across_kinds():
            notice(sentence)
    missing = [part for part in parts if not storage.exists(storage.join(part.url, MANIFEST))]
    notify = progress or (lambda *_: None)
    if missing:
        with cluster.connected():
            if not storage.exists(storage.join(prepared, TRANSFORM)):
                fit = next(part for part in parts if part.source == data.fit_source and part.split == "train")
                storage.write_json(storage.join(prepared, TRANSFORM), _fit(data, fit, notify).to_dict())
            _shuffle(data, missing, load_transform(prepared), notify)
    return open_prepared(data)


def _claim(prepared: str, data: Data) -> None:
    """Mark the directory as this recipe's. Another's is refused once it holds a finished split; what came before is made anew."""
    name = storage.join(prepared, SETTINGS)
    if storage.exists(name):
        changed = changed_settings(prepared, data)
        if not changed:
            return
        if storage.list_files(prepared, MANIFEST):
            raise UserError(f"{prepared}: was prepared by another recipe ({changed}); choose another data.prepared or remove it")
        storage.remove(storage.join(prepared, TRANSFORM))
    storage.write_json(name, prepare_settings(data))


def _part(data: Data, name: str, split: str, prepared: str, notice: Notice | None) -> Part:
    source = data.sources[name]
    months = source.months(split)
    assert months is not None
    pieces = flat.list_pieces(source.path, start=months.start, stop=months.stop, notice=notice)
    groups: list[list[flat.Piece]] = [[]]
    size = total = 0
    for piece in pieces:
        rows = piece.rows if piece.rows >= 0 else storage.size(piece.path) // _BYTES_PER_ROW
        if groups[-1] and size + rows > data.shuffle_rows:
            groups.append([])
            size = 0
        groups[-1].append(piece)
        size, total = size + rows, total + rows
    return Part(
        source=name,
        split=split,
        kind=source.kind,
        months=str(months),
        groups=tuple(tuple(group) for group in groups),
        buckets=max(-(-total // data.shuffle_rows), 1),
        url=storage.join(prepared, split, name),
    )


@dataclass
class Tally:
    """What was wrong in the rows of a group, by column."""

    bad: np.ndarray
    bad_rows: int
    inexact: np.ndarray

    @classmethod
    def empty(cls) -> Tally:
        return cls(np.zeros(_WIDTH, np.int64), 0, np.zeros(int(EXACT.sum()), np.int64))

    def add(self, other: Tally) -> None:
        self.bad += other.bad
        self.bad_rows += other.bad_rows
        self.inexact += other.inexact


def clean_blocks(piece: flat.Piece, kind: str, policy: str, tally: Tally) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Inputs, targets and row keys of a piece without the rows that hold NaN or Inf, which are counted.

    Raises UserError on the first such row if the policy is to refuse them.
    """
    for block in flat.read_piece(piece, kind=kind):
        assert block.targets is not None
        bad_inputs, bad_targets = ~np.isfinite(block.inputs), ~np.isfinite(block.targets)
        counts = np.concatenate([bad_inputs.sum(axis=0), bad_targets.sum(axis=0)])
        if not counts.any():
            yield block.inputs, block.targets, block.row
            continue
        if policy == "refuse":
            columns = np.array(INPUTS.columns + TARGETS.columns)[counts > 0]
            raise UserError(
                f"{piece.path}: NaN or Inf in {len(columns)} column(s), {', '.join(columns[:3])}"
                f"{' …' if len(columns) > 3 else ''}; mend the file, or set data.bad_rows to drop"
            )
        keep = ~(bad_inputs.any(axis=1) | bad_targets.any(axis=1))
        tally.bad += counts
        tally.bad_rows += int((~keep).sum())
        yield block.inputs[keep], block.targets[keep], block.row[keep]


def _fit(data: Data, part: Part, progress: Progress) -> Transform:
    def moments(group: int) -> list[Moments]:
        return [_moments(clean_blocks(piece, part.kind, data.bad_rows, Tally.empty())) for piece in part.groups[group]]

    groups = run_tasks(moments, len(part.groups), lambda done, count: progress("statistics", done, count))
    # piece by piece in file order, however they were grouped
    total = Moments.merge_all((moments for group in groups for moments in group), _WIDTH)
    if total.count == 0:
        raise UserError(f"sources.{part.source}.train: no usable rows in months {part.months}")
    inputs, targets = (
        Moments(total.count, *(array[columns] for array in (total.mean, total.m2, total.minimum, total.maximum)))
        for columns in (slice(0, INPUTS.width), slice(INPUTS.width, None))
    )
    fitted_on = {"source": part.source, "kind": part.kind, "months": part.months, "rows": total.count}
    return fit_transform(data.scaling, inputs, targets, fitted_on)


def _moments(blocks: Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Moments:
    return Moments.merge_all((Moments.of(np.hstack([inputs, targets])) for inputs, targets, _ in blocks), _WIDTH)


def _shuffle(data: Data, parts: Sequence[Part], transform: Transform, progress: Progress) -> None:
    for part in parts:
        storage.remove(part.url)
    scatters = [(part, group) for part in parts for group in range(len(part.groups))]

    def scatter_group(task: int) -> tuple[list[str], Tally]:
        part, group = scatters[task]
        tally = Tally.empty()
        names: list[str] = []
        for rows in _scaled(part, group, data, transform, tally):
            names.append(f"{group:06d}-{len(names):03d}.arrow")
            scatter(rows, part.buckets, data.seed, storage.join(part.scatter_url, names[-1]))
        return names, tally

    found: dict[str, list[str]] = {part.url: [] for part in parts}
    tallies = {part.url: Tally.empty() for part in parts}
    results = run_tasks(scatter_group, len(scatters), lambda done, count: progress("scatter", done, count))
    for (part, _), (names, tally) in zip(scatters, results, strict=True):
        found[part.url] += [storage.join(part.scatter_url, name) for name in names]
        tallies[part.url].add(tally)
    for part in parts:
        if not found[part.url]:
            raise UserError(f"sources.{part.source}.{part.split}: no usable rows in months {part.months}")

    gathers = [(part, bucket) for part in parts for bucket in range(part.buckets)]

    def gather_bucket(task: int) -> list[ShardFile]:
        part, bucket = gathers[task]
        rows = gather(found[part.url], bucket, data.seed)
        count = len(rows["row"])
        edges = np.linspace(0, count, -(-count // data.rows_per_shard) + 1).astype(int).tolist()
        files = [ShardFile(f"shard-{bucket:05d}-{index:03d}.parquet", stop - start) for index, (start, stop) in enumerate(pairwise(edges))]
        for file, (start, stop) in zip(files, pairwise(edges), strict=True):
            write_shard(storage.join(part.url, file.name), {key: values[start:stop] for key, values in rows.items()})
        return files

    files: list[ShardFile] = []
    shards = run_tasks(gather_bucket, len(gathers), lambda done, count: progress("gather", done, count))
    for (part, bucket), made in zip(gathers, shards, strict=True):
        files += made
        if bucket == part.buckets - 1:
            _write_manifest(part, data, transform, files, tallies[part.url])
            files = []


def _scaled(part: Part, group: int, data: Data, transform: Transform, tally: Tally) -> Iterator[Rows]:
    """Scaled rows of a group, as many at a time as the shuffle may hold."""
    held: list[Rows] = []
    blocks = (block for piece in part.groups[group] for block in clean_blocks(piece, part.kind, data.bad_rows, tally))
    for inputs, targets, row in blocks:
        tally.inexact += (targets[:, EXACT] != -inputs[:, EXACT_SOURCE] / STEP_SECONDS).sum(axis=0)
        held.append(
            {
                "inputs": transform.scale_inputs(torch.from_numpy(inputs)).numpy(),
                "targets": transform.scale_targets(torch.from_numpy(targets)).numpy(),
                "row": row,
            }
        )
        if sum(len(rows["row"]) for rows in held) >= data.shuffle_rows:
            rows, held = _stack(held), []
            yield rows
    if sum(len(rows["row"]) for rows in held):
        yield _stack(held)


def _stack(held: Sequence[Rows]) -> Rows:
    return {key: np.concatenate([rows[key] for rows in held]) for key in held[0]}


def _write_manifest(part: Part, data: Data, transform: Transform, files: Sequence[ShardFile], tally: Tally) -> None:
    columns = np.array(INPUTS.columns + TARGETS.columns)
    exact = np.array(TARGETS.columns)[EXACT]
    Manifest(
        url=part.url,
        source=part.source,
        kind=part.kind,
        split=part.split,
        months=part.months,
        transform=transform.digest(),
        seed=data.seed,
        files=tuple(files),
        dropped=_nonzero(columns, tally.bad),
        dropped_rows=tally.bad_rows,
        inexact=_nonzero(exact, tally.inexact),
    ).save()
    storage.remove(part.scatter_url)


def _nonzero(columns: np.ndarray, counts: np.ndarray) -> dict[str, int]:
    return dict(zip(columns[counts > 0].tolist(), counts[counts > 0].tolist(), strict=True))
