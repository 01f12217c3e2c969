"""What an ASCII terminal cannot show is replaced, in lines, tables and errors alike."""

import os
import subprocess
import sys

PROGRAM = """
from leapray.console import errors, say, table, terminal
terminal.show_everything()
say("wrote l\\u00e4ufe/\\u4e2d \\udce4")
table("L\\u00e4ufe", ("l\\u00e4uf", "skill"), [("\\u00e4", "0.5")])
errors.print("error: l\\u00e4ufe")
"""


def test_no_line_fails_where_output_is_ascii() -> None:
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "COLUMNS": "80"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == rb"wrote l\xe4ufe/\u4e2d \udce4"
    assert rb"l\xe4uf" in done.stdout
    assert done.stderr.strip() == rb"error: l\xe4ufe"


def test_a_terminal_that_has_the_letters_shows_them() -> None:
    environment = os.environ | {"PYTHONIOENCODING": "utf-8"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, check=False)
    assert done.stdout.splitlines()[0] == "wrote läufe/中 \\udce4".encode()
