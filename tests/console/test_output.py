"""A command goes on when the disk that its output is sent to is full."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
from leapray import cli
from leapray.console import bar, say

def verb():
    with bar("train") as update:
        for number in range(2000):
            update(number, 2000)
            say(f"train step {number}")
    say(sys.argv[1])
    sys.exit(0)

cli.app = verb
cli.main()
"""
FULL = Path("/dev/full")
pytestmark = pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")


def run(last_line: str, output: object, errors: object) -> tuple[int, str]:
    done = subprocess.run([sys.executable, "-c", PROGRAM, last_line], stdout=output, stderr=errors, text=True, check=False)  # type: ignore[call-overload]
    return done.returncode, done.stderr or ""


def test_what_was_written_is_told_where_the_log_is_full() -> None:
    with FULL.open("w") as full:
        status, said = run("wrote runs/base/model", full, subprocess.PIPE)
        assert (status, said.count("\n")) == (0, 1)
        assert said.startswith("note: standard output cannot be written (No space left on device)")
        assert "wrote runs/base/model" in said
        assert run("wrote runs/base/model", full, full)[0] == 0
        assert run("wrote runs/base/model", subprocess.PIPE, full)[0] == 0


def test_lines_that_are_all_a_verb_gives_are_missed() -> None:
    with FULL.open("w") as full:
        status, said = run("name: base", full, subprocess.PIPE)
        assert (status, said.count("\n")) == (2, 1)
        assert said.startswith("error: standard output cannot be written")
        assert run("name: base", full, full)[0] == 2
