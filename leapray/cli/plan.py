"""The verb that says what a training would take."""

from __future__ import annotations

from typing import Annotated

import typer

from leapray.cli.app import Overrides, RecipeFile, app
from leapray.console import say


@app.command()
def plan(
    recipe: RecipeFile,
    gpus: Annotated[int, typer.Option(help="GPUs to train on, one worker each; 0: CPU workers")],
    workers: Annotated[int | None, typer.Option(help="CPU workers, with --gpus 0; default: the recipe's")] = None,
    rate: Annotated[float | None, typer.Option(help="Rows/s that one worker trains, if known")] = None,
    read_rate: Annotated[float | None, typer.Option(help="Rows/s that one CPU makes ready of what is streamed")] = None,
    gpu_tflops: Annotated[float | None, typer.Option(help="TFLOP/s that a GPU attains in training")] = None,
    storage_gbps: Annotated[float | None, typer.Option(help="Gbit/s that the storage gives to all nodes together")] = None,
    network_gbps: Annotated[float | None, typer.Option(help="Gbit/s of a node's network card")] = None,
    link_gbps: Annotated[float | None, typer.Option(help="Gbit/s between the workers of a node")] = None,
    cpus_per_node: Annotated[int | None, typer.Option(help="CPUs of a node; default: 12 for each GPU, or this machine's")] = None,
    gpus_per_node: Annotated[int | None, typer.Option(help="GPUs of a node; default: 8")] = None,
    measure: Annotated[bool, typer.Option("--measure", help="Measure training step and reading on this machine")] = False,
    seconds: Annotated[float, typer.Option(help="Of each measurement, about")] = 5.0,
    json: Annotated[str | None, typer.Option(help="Also write the plan to this file")] = None,
    overrides: Overrides = [],  # noqa: B006
) -> None:
    """Say what a training would take on so many GPUs: rows/s, hours, CPUs, bandwidth, memory, and what holds it back first."""
    from leapray.planning.request import Request, planned_recipe

    request = Request(
        gpus=gpus,
        workers=workers,
        rate=rate,
        read_rate=read_rate,
        gpu_tflops=gpu_tflops,
        storage_gbps=storage_gbps,
        network_gbps=network_gbps,
        link_gbps=link_gbps,
        cpus_per_node=cpus_per_node,
        gpus_per_node=gpus_per_node,
        measure=measure,
        seconds=seconds,
    )
    loaded = planned_recipe(recipe, overrides, request)
    from leapray import storage
    from leapray.planning.plan import make_plan
    from leapray.planning.show import show

    made = make_plan(loaded, request)
    show(made)
    if json is not None:
        storage.write_json(json, made.to_dict())
        say(f"wrote the plan to {json}")
