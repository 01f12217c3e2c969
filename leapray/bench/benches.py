"""The benches by name, and running one in a temporary directory."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

from leapray import storage
from leapray.bench.compare import Comparison, Settings
from leapray.errors import UserError
from leapray.recipe import Recipe

BENCHES = ("convert", "statistics", "ingest", "train-step", "predict")
"""Each is a module here whose ``run(settings)`` gives the comparisons."""


def run_bench(name: str, settings: Settings, recipe: Recipe | None = None, json: str | None = None) -> list[Comparison]:
    """Run a bench, with its data in a temporary directory inside ``settings.directory``, and write its rows to ``json``.

    ``recipe`` is the one whose step ``train-step`` takes apart. Raises UserError for an unknown name, a recipe for another bench, counts
    below 1, a directory that cannot be written, a cluster, and a baseline's package that is missing.
    """
    if name not in BENCHES:
        raise UserError(f"bench {name!r} is not one of {', '.join(BENCHES)}")
    if recipe is not None and name != "train-step":
        raise UserError(f"bench {name} takes no recipe; bench train-step does")
    for option, value in (("rows", settings.rows), ("rounds", settings.rounds)):
        if value is not None and value < 1:
            raise UserError(f"{option} = {value} is not 1 or more")
    if os.environ.get("RAY_ADDRESS"):
        raise UserError("bench measures this machine alone; unset RAY_ADDRESS")
    if not (settings.directory.is_dir() and os.access(settings.directory, os.W_OK)):
        raise UserError(f"{settings.directory}: not a directory that can be written to")
    try:
        module = import_module(f"leapray.bench.{name.replace('-', '_')}")
    except ModuleNotFoundError as error:
        raise UserError(f"bench {name} needs {error.name} for its baseline; pip install 'leapray[dev]'") from error
    if json is not None:
        # a place that cannot be written is found now, not after the run
        storage.write_json(json, [])
    run: Callable[..., list[Comparison]] = module.run
    with TemporaryDirectory(prefix="leapray-bench-", dir=settings.directory) as work:
        settings = replace(settings, directory=Path(work))
        comparisons = run(settings, recipe) if recipe else run(settings)
    if json is not None:
        storage.write_json(json, [comparison.to_dict() for comparison in comparisons])
    return comparisons
