"""The verb that says what is here and what is wrong with it."""

from __future__ import annotations

from typing import Annotated

import typer

from leapray.cli.app import Overrides, app
from leapray.console import say
from leapray.errors import UserError


@app.command()
def doctor(
    recipe: Annotated[str | None, typer.Argument(metavar="RECIPE", help="Recipe whose places and resources are checked too")] = None,
    overrides: Overrides = [],  # noqa: B006
) -> None:
    """Say what this machine or cluster has, what a recipe needs, and what is wrong, each with its remedy."""
    from leapray.doctor import examine, require_good
    from leapray.recipe import load_recipe

    if overrides and recipe is None:
        raise UserError("--set changes a recipe, and none was given; expected leapray doctor RECIPE --set section.key=value")
    findings = []
    for finding in examine(load_recipe(recipe, overrides) if recipe is not None else None):
        say(f"{finding.verdict.value:<6} {finding.text}")
        findings.append(finding)
    say(require_good(findings))
