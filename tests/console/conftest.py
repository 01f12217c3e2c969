import io

import pytest
from rich.console import Console

from leapray.console import terminal


@pytest.fixture
def output(monkeypatch):
    """What is shown, and a way to choose where it is shown."""
    written = io.StringIO()

    def on(a_terminal, height=25, width=80):
        shown = Console(file=written, force_terminal=a_terminal, width=width, height=height, highlight=False, color_system=None)
        monkeypatch.setattr(terminal, "console", shown)
        return written

    return on


class Clock:
    """A clock that is set."""

    seconds = 0.0

    def __call__(self):
        return self.seconds


@pytest.fixture
def clock():
    return Clock()
