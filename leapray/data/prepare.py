"""Flat parquet to a fitted transform and shuffled shards, on Ray Data: moments, then scatter, then gather.

Every task notes its result when it is complete, and a split's manifest comes last, so that an interrupted run goes on with what
is missing and gives what an undisturbed one would have given, byte for byte.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import numpy as np

from leapray import storage
from leapray.climsim.row_keys import first_twice, key_runs, row_place
from leapray.climsim.schema import SAMPLE_ID
from leapray.cluster import nodes, session
from leapray.data import flat
from leapray.data.clean import Tally, clean, count_inexact, scale, stack
from leapray.data.fitting import Fitting
from leapray.data.parts import WORK, Notice, Part, Progress, cut, once
from leapray.data.shards import (
    INPUTS_KEY,
    MANIFEST,
    SETTINGS,
    TRANSFORM,
    Files,
    FlatFile,
    Manifest,
    Prepared,
    Rows,
    ShardFile,
    changed_settings,
    open_prepared,
    prepare_settings,
    write_shard,
)
from leapray.data.shuffle import DuplicateRowError, checksum, gather, scatter
from leapray.data.statistics import make_transform
from leapray.data.tasks import run_tasks
from leapray.data.transform import Transform
from leapray.errors import UserError
from leapray.recipe import SPLITS, Data, Recipe


def prepare(recipe: Recipe, progress: Progress | None = None, notice: Notice | None = None) -> Prepared:
    """Make what is missing of a recipe's prepared directory and open it.

    Raises UserError for unreadable data, months without rows, values that cannot be used (``bad_rows: refuse``), duplicate rows, or a
    directory that another recipe prepared, or another process prepares.
    """
    data = recipe.data
    fitting = Fitting(data.variable_set, data.scaling, data.features)
    prepared = storage.absolute(data.prepared)
    for source in data.sources.values():
        flat_files = storage.absolute(source.path)
        if f"{prepared}/".startswith(f"{flat_files}/") or f"{flat_files}/".startswith(f"{prepared}/"):
            raise UserError(f"data.prepared {prepared} and the source {flat_files} lie in one another; choose another data.prepared")
    parts = cut(data, prepared, notice)
    if notice:
        for sentence in data.overlaps_across_kinds():
            notice(sentence)
    # what is whole already may be where this process cannot write
    whole = all(storage.exists(storage.join(part.url, MANIFEST)) for part in parts)
    with nullcontext() if whole else storage.locked(prepared, notice or (lambda sentence: None)):
        _claim(prepared, data, parts)
        if missing := [part for part in parts if not _finished(part)]:
            with session.connected(), nodes.data_nodes(recipe.resources.data_nodes):
                nodes.require_data_nodes(recipe.resources.data_nodes)
                notify = progress or (lambda *_: None)
                transform = make_transform(data, fitting, parts, prepared, notify)
                make = _shuffle if data.stream_from == "shards" else _list
                make(data, missing, transform, notify)
        # whatever was made when, a kill may have come before it was cleared away
        for place in (prepared, *(part.url for part in parts)):
            storage.remove(storage.join(place, WORK))
    return open_prepared(data)


def _finished(part: Part) -> bool:
    """Whether a part has its manifest, and the shards that this names are there and whole; without one of them it is made again."""
    manifest = storage.join(part.url, MANIFEST)
    if not storage.exists(manifest):
        return False
    sizes = storage.list_sizes(part.url)
    shards = [file for file in Manifest.load(part.url).files if isinstance(file, ShardFile)]
    if all(sizes.get(storage.join(part.url, shard.name)) == shard.bytes for shard in shards):
        return True
    storage.remove(manifest)
    return False


def _claim(prepared: str, data: Data, parts: Sequence[Part]) -> None:
    """Mark the directory as this recipe's over these inputs. Another's is refused once it holds a finished split; what is
    unfinished of another is made anew."""
    name, inputs = storage.join(prepared, SETTINGS), {part.key: part.input for part in parts}
    if data.statistics is not None:
        inputs["statistics"] = storage.fingerprint(data.statistics)
    if storage.exists(name):
        changed = changed_settings(prepared, data)
        if not changed:
            before = storage.read_json(name).get(INPUTS_KEY)
            if before == inputs:
                return
            changed = "the files of " + ", ".join(key for key in inputs if not before or before.get(key) != inputs[key])
        if storage.list_files(prepared, MANIFEST):
            raise UserError(f"{prepared}: was prepared otherwise ({changed}); choose another data.prepared or remove it")
        for left in (*SPLITS, WORK, TRANSFORM):
            storage.remove(storage.join(prepared, left))
    elif not storage.is_empty(prepared):
        raise UserError(f"{prepared}: holds other things than prepared data; choose an empty data.prepared")
    storage.write_json(name, prepare_settings(data) | {INPUTS_KEY: inputs})


def _shuffle(data: Data, parts: Sequence[Part], transform: Transform, notify: Progress) -> None:
    """Scatter and gather every part, and write its manifest."""
    scatters = [(part, group) for part in parts for group in range(len(part.groups))]
    results = run_tasks(
        lambda task: scatter_group(data, *scatters[task], transform), len(scatters), lambda done, count: notify("scatter", done, count)
    )
    receipts: dict[str, list[dict]] = {part.url: [] for part in parts}
    for (part, _), receipt in zip(scatters, results, strict=True):
        receipts[part.url].append(receipt)
    for part in parts:
        if not any(receipt["rows"] for receipt in receipts[part.url]):
            raise UserError(f"{part.key}: no usable rows in months {part.months}")

    files = {part.url: [(name, group) for group, receipt in enumerate(receipts[part.url]) for name in receipt["files"]] for part in parts}
    gathers = [(part, bucket) for part in parts for bucket in range(part.buckets)]
    shards: dict[str, list[dict]] = {part.url: [] for part in parts}
    made = run_tasks(
        lambda task: gather_bucket(data, *gathers[task], files[gathers[task][0].url]),
        len(gathers),
        lambda done, count: notify("gather", done, count),
    )
    for (part, bucket), receipt in zip(gathers, made, strict=True):
        shards[part.url].append(receipt)
        if bucket == part.buckets - 1:
            _finish(part, data, transform, receipts[part.url], shards[part.url])


def scatter_group(data: Data, part: Part, group: int, transform: Transform) -> dict[str, Any]:
    """Scatter one group of a part into files of its scatter directory; its receipt: their names, rows, checksum and tally."""

    def work() -> dict[str, Any]:
        tally, count, total = Tally.empty(data.variable_set), 0, 0
        names: list[str] = []
        held: list[Rows] = []

        def flush() -> None:
            nonlocal count, total
            rows = stack(held)
            held.clear()
            names.append(f"{group:06d}-{len(names):03d}.arrow")
            scatter(rows, part.buckets, data.seed, storage.join(part.work, names[-1]))
            count, total = count + len(rows["row"]), (total + checksum(rows)) % (1 << 64)

        for piece in part.groups[group]:
            for block in clean(flat.read_piece(piece, data.variable_set, kind=part.kind), piece.path, data.bad_rows, tally):
                count_inexact(block, tally)
                held.append(scale(block, transform))
                if sum(len(rows["row"]) for rows in held) >= data.shuffle_rows:
                    flush()
        if held:
            flush()
        return {"files": names, "rows": count, "checksum": total, "tally": tally.to_dict()}

    return once(
        storage.join(part.work, f"{group:06d}.json"), work, lambda receipt: [storage.join(part.work, name) for name in receipt["files"]]
    )


def gather_bucket(data: Data, part: Part, bucket: int, files: Sequence[tuple[str, int]]) -> dict[str, Any]:
    """Gather one bucket of a part into shards; its receipt: their names and rows, and a checksum. ``files`` are the scattered ones
    by name and group."""

    def work() -> dict[str, Any]:
        try:
            rows = gather([storage.join(part.work, name) for name, _ in files], bucket, data.seed)
        except DuplicateRowError as twice:
            raise _duplicate(part, twice, [files[index][1] for index in twice.files]) from twice
        count = len(rows["row"])
        edges = np.linspace(0, count, -(-count // data.rows_per_shard) + 1).astype(int).tolist()
        shards = []
        for index, (start, stop) in enumerate(pairwise(edges)):
            name = f"shard-{bucket:05d}-{index:03d}.parquet"
            url = storage.join(part.url, name)
            write_shard(url, {column: values[start:stop] for column, values in rows.items()})
            shards.append({"name": name, "rows": stop - start, "bytes": storage.size(url)})
        return {"shards": shards, "checksum": checksum(rows)}

    return once(
        storage.join(part.work, f"bucket-{bucket:05d}.json"),
        work,
        lambda receipt: [storage.join(part.url, shard["name"]) for shard in receipt["shards"]],
    )


def _duplicate(part: Part, twice: DuplicateRowError, groups: Sequence[int]) -> UserError:
    paths = dict.fromkeys(piece.path for group in groups for piece in part.groups[group])
    return _stands_twice(part, twice.row, f"{' or '.join([*paths][:3])}{' …' if len(paths) > 3 else ''}")


def _stands_twice(part: Part, row: int, where: str) -> UserError:
    _, step, ncol = row_place(np.array([row]))
    what = f"step {step[0]}, column {ncol[0]}" if row >= 0 else f"a row with the same {SAMPLE_ID}"
    return UserError(f"{where}: {what} is in {part.key} twice, expected every row once")


def _finish(part: Part, data: Data, transform: Transform, scattered: Sequence[dict], gathered: Sequence[dict]) -> None:
    """Check that what was gathered is what was scattered, and write the manifest."""
    files = tuple(ShardFile(**shard) for receipt in gathered for shard in receipt["shards"])
    before = sum(receipt["rows"] for receipt in scattered), sum(receipt["checksum"] for receipt in scattered) % (1 << 64)
    after = sum(file.rows for file in files), sum(receipt["checksum"] for receipt in gathered) % (1 << 64)
    if before != after:
        raise UserError(f"{part.url}: the shuffle gave {after[0]} rows of {before[0]}, or other values; remove it and prepare again")
    _manifest(part, data, transform, files, _sum(data, (receipt["tally"] for receipt in scattered)), f"{after[1]:016x}").save()


def _list(data: Data, parts: Sequence[Part], transform: Transform, notify: Progress) -> None:
    """Look at every row once, and write manifests that name flat pieces, for a training that streams them."""
    for piece in (piece for part in parts for piece in part.pieces):
        if piece.rows > data.shuffle_rows:
            raise UserError(
                f"{piece.path}: a row group of {piece.rows} rows is more than data.shuffle_rows {data.shuffle_rows}, which is held at "
                "once; set data.stream_from to shards"
            )
    pieces = [(part, piece) for part in parts for piece in part.pieces]
    results = run_tasks(lambda task: look_at(data, *pieces[task]), len(pieces), lambda done, total: notify("look", done, total))
    receipts: dict[str, list[tuple[flat.Piece, dict]]] = {part.url: [] for part in parts}
    for (part, piece), receipt in zip(pieces, results, strict=True):
        receipts[part.url].append((piece, receipt))
    for part in parts:
        mine = receipts[part.url]
        twice = first_twice((tuple(run), piece.path) for piece, receipt in mine for run in receipt["runs"])
        if twice is not None:
            raise _stands_twice(part, twice[0], " or ".join(dict.fromkeys(twice[1:])))
        files = tuple(FlatFile(piece, receipt["rows"]) for piece, receipt in mine if receipt["rows"])
        if not files:
            raise UserError(f"{part.key}: no usable rows in months {part.months}")
        _manifest(part, data, transform, files, _sum(data, (receipt["tally"] for _, receipt in mine)), None).save()


def look_at(data: Data, part: Part, piece: flat.Piece) -> dict[str, Any]:
    """The receipt of a piece that is streamed as it is: its usable rows, their keys as runs, and the tally."""

    def work() -> dict[str, Any]:
        tally, rows = Tally.empty(data.variable_set), [np.empty(0, np.int64)]
        for block in clean(flat.read_piece(piece, data.variable_set, kind=part.kind), piece.path, data.bad_rows, tally):
            count_inexact(block, tally)
            rows.append(block.row)
        keys = np.concatenate(rows)
        return {"rows": len(keys), "runs": key_runs(keys), "tally": tally.to_dict()}

    # its number among those taken: that in the whole listing changes when other files join
    return once(storage.join(part.work, f"{part.pieces.index(piece):06d}.json"), work)


def _sum(data: Data, tallies: Iterable[dict]) -> Tally:
    total = Tally.empty(data.variable_set)
    for values in tallies:
        total.add(Tally.from_dict(values, data.variable_set))
    return total


def _manifest(part: Part, data: Data, transform: Transform, files: Files, tally: Tally, checksum: str | None) -> Manifest:
    return Manifest(
        url=part.url,
        source=part.source,
        kind=part.kind,
        split=part.split,
        months=part.months,
        transform=transform.digest(),
        seed=data.seed,
        input=part.input,
        bad_rows=data.bad_rows,
        files=files,
        checksum=checksum,
        dropped=tally.dropped(),
        dropped_rows=tally.bad_rows,
        inexact=tally.inexact_rows(),
    )
