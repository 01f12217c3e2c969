"""A plan in the terminal: its tables and sentences, in units that people read."""

from __future__ import annotations

from leapray.console import say, table
from leapray.planning.plan import RATES, Cell, Plan

_BYTES = ("B", "kB", "MB", "GB", "TB", "PB")
_THOUSAND = 1000


def show(plan: Plan) -> None:
    """Print all of a plan."""
    for title, rows in plan.tables.items():
        if title == RATES:
            continue
        columns = list(next(iter(rows.values())))
        table("", (title, *columns), [(name, *(in_words(cells[column]) for column in columns)) for name, cells in rows.items()])
    # whole sentences, which no column of a table holds
    for name, cells in plan.tables[RATES].items():
        say(f"{name + ':':<12} {in_words(cells['value']):>15}, {cells['is']}: {cells['from']}")
    say("")
    for sentence in plan.sentences:
        say(sentence)


def in_words(cell: Cell) -> str:
    """A cell as it is shown: three digits, in the unit that suits its size."""
    if isinstance(cell, str):
        return cell
    value, unit = cell
    if unit in ("s", "s of CPU"):
        return _time(value) + unit.removeprefix("s")
    if unit in ("bytes", "bytes/s"):
        return _bytes(value) + unit.removeprefix("bytes")
    if unit in ("", "rows") and value >= 1:
        return f"{value:,.0f}"
    shown = f"{value:,.0f}" if value >= _THOUSAND else f"{value:.3g}"
    return f"{shown} {unit}".rstrip() if unit != "rows" else shown


def _time(seconds: float) -> str:
    for limit, size, unit in ((1e-3, 1e-6, "us"), (1, 1e-3, "ms"), (120, 1, "s"), (7200, 60, "min"), (2 * 86400, 3600, "h")):
        if seconds < limit:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 86400:.3g} d"


def _bytes(value: float) -> str:
    power = 0
    while value >= _THOUSAND and power < len(_BYTES) - 1:
        value, power = value / _THOUSAND, power + 1
    return f"{value:.3g} {_BYTES[power]}"
