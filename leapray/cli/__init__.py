"""The command line: one verb per stage, no logic. Each verb imports what it needs, so that ``--help`` answers at once."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from leapray import __version__
from leapray.cli import data, doctor, inference, plan, training, whole  # noqa: F401
from leapray.cli.app import app
from leapray.cluster import shadows
from leapray.console import errors, say, terminal
from leapray.errors import UserError
from leapray.faults import told

_INTERRUPTED = 130
"""Status of a command that Ctrl-C or SIGTERM has ended, as a shell gives it."""

_LONGEST = 4000
"""Characters of a sentence about a mistake; what it quotes may be of any length."""

__all__ = ["app", "main"]


def main() -> None:
    """Run the command line: status 0 on success, 2 on a user's mistake (one sentence), 1 on anything else."""
    terminal.show_everything()
    terminal.quieten_plots()
    try:
        shadows.refuse_own()
        _run()
    except UserError as error:
        errors.print(f"error: {told(error, _LONGEST)}", soft_wrap=True, markup=False)
        sys.exit(2)
    finally:
        terminal.close()


def _run() -> None:
    try:
        app()
    except SystemExit as exited:
        if exited.code == _INTERRUPTED:
            errors.print("interrupted; the same command goes on where it can")
        if not exited.code:
            terminal.require_output()
        raise


def _version(asked: bool) -> None:
    if asked:
        say(f"leapray {__version__}")
        raise typer.Exit


@app.callback()
def _root(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version")] = False) -> None:
    pass
