"""A page of sections with tables and pictures, as one HTML file that opens without a network."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from leapray.console import digits

_PNG = b"\x89PNG"


@dataclass(frozen=True)
class Cell:
    """What a table shows, and the full figure behind it, where there is one."""

    text: str
    value: float | None = None
    words: bool = False
    """Whether it is prose, which stands at the left and may break into lines."""


@dataclass(frozen=True)
class Table:
    """Rows, at least one, of as many cells as the header has; the first cell of a row names it.

    The first ``marked`` rows are the page's subject.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    marked: int = 0


@dataclass(frozen=True)
class Picture:
    """A PNG or SVG file, and what it shows in words, for those who do not see it."""

    content: bytes
    words: str

    @property
    def source(self) -> Markup:
        """The file as an URL that holds it."""
        kind = "png" if self.content.startswith(_PNG) else "svg+xml"
        # base64 and a fixed kind: nothing in it needs escaping
        return Markup(f"data:image/{kind};base64,{base64.b64encode(self.content).decode()}")


@dataclass(frozen=True)
class Section:
    """A part of the page with a place in its index: sentences, and below them tables and pictures in their order."""

    key: str
    title: str
    words: Sequence[str] = ()
    content: Sequence[Table | Picture] = ()
    listed: Sequence[str] = ()
    """Sentences that stand as a list, at the end."""


def render(title: str, lead: str, sections: Sequence[Section]) -> str:
    """The page as HTML. Names and sentences are shown as they are, whatever they hold."""
    environment = Environment(loader=PackageLoader("leapray.evaluation.report", "."), autoescape=True, undefined=StrictUndefined)
    environment.trim_blocks = environment.lstrip_blocks = True
    environment.tests |= {"table": lambda item: isinstance(item, Table)}
    return environment.get_template("page.html").render(title=title, lead=lead, sections=sections)


def text(words: object) -> Cell:
    """A cell of words."""
    return Cell(str(words), words=True)


def figure(value: float | None, sign: str = "") -> Cell:
    """A cell of a number in three significant digits, of a difference with its ``sign`` ``+``; a dash for what is no number."""
    return Cell("", None) if value is None else Cell(written(value, sign), value if math.isfinite(value) else None)


def count(value: int) -> Cell:
    return Cell(f"{value:,}", value)


def span(low: float, high: float, sign: str = "") -> Cell:
    """A cell of an interval."""
    return Cell(f"{written(low, sign)} to {written(high, sign)}")


def counted(number: int, noun: str) -> str:
    """So many of what a noun names, for a sentence."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def written(value: float, sign: str = "") -> str:
    """A number for a sentence, in three significant digits."""
    return digits(value, sign).replace("-", "\N{MINUS SIGN}") if math.isfinite(value) else "\N{EM DASH}"
