"""The benches by name, and running one: its data in a directory of its own, a table in the end, json where asked for."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

from leapray import storage
from leapray.bench.compare import Comparison, Progress, Settings
from leapray.errors import UserError

BENCHES = {
    "convert": "leapray.bench.convert",
    "statistics": "leapray.bench.statistics",
    "ingest": "leapray.bench.ingest",
    "train-step": "leapray.bench.train_step",
    "predict": "leapray.bench.predict",
}
"""Modules whose ``run(settings, progress)`` gives the comparisons; each is imported only when it is asked for."""


def run_bench(
    name: str,
    *,
    json: str | None = None,
    rows: int | None = None,
    rounds: int = 5,
    quick: bool = False,
    directory: Path | None = None,
    progress: Progress | None = None,
) -> list[Comparison]:
    """Run a bench, with its data in a temporary directory inside ``directory``, and write its rows to ``json``.

    Raises UserError for an unknown name, counts below 1, and a baseline's package that is missing.
    """
    if name not in BENCHES:
        raise UserError(f"bench {name!r} is not one of {', '.join(BENCHES)}")
    for option, value in (("rows", rows), ("rounds", rounds)):
        if value is not None and value < 1:
            raise UserError(f"{option} = {value} is not 1 or more")
    try:
        bench = import_module(BENCHES[name])
    except ModuleNotFoundError as error:
        raise UserError(f"bench {name} needs {error.name} for its baseline; pip install 'leapray[dev]'") from error
    if directory is not None and not (directory.is_dir() and os.access(directory, os.W_OK)):
        raise UserError(f"{directory}: not a directory that can be written to")
    if json is not None:
        # found out before the run, not after it
        storage.write_json(json, [])
    with TemporaryDirectory(prefix="leapray-bench-", dir=directory) as work:
        comparisons: list[Comparison] = bench.run(Settings(Path(work), rows, rounds, quick), progress)
    if json is not None:
        storage.write_json(json, [comparison.to_dict() for comparison in comparisons])
    return comparisons
