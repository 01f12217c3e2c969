"""Tables that fit the width they are shown in: turned, or folded into blocks of columns, and names never lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from rich.cells import cell_len

Row = Sequence[str]
_GAP, _EDGES = 2, 1
"""Spaces before a column, and at the end of a line."""
_FRAME = 3
"""Lines of a block that are not its rows: header, rule, and the empty line below."""
_LEAST_NAME, _LEAST_CELL = 12, 10
"""Letters that are left of a name, and of a cell, in the narrowest terminal."""
_MARK = "…"


def fitted(header: Row, rows: Sequence[Row], width: int) -> list[list[list[str]]]:
    """A table as one or several blocks that are each at most ``width`` wide: header and rows, each row begun by its name.

    A table that does not fit is folded into blocks of columns, or turned (a row for each column) where that takes fewer lines. Names that
    leave too little room are shortened in their middle, and stay distinct. Cells may still be wider than what is left for them.
    """
    whole = [list(header), *(list(row) for row in rows)]
    if _wide(whole) <= width or len(header) < 2:
        return [whole]
    turned = [list(column) for column in zip(*whole, strict=True)]
    room = width - _EDGES - 2 * _GAP
    found = [_folded(table, width, longest) for table in (whole, turned) for longest in (room - _narrowest(table), room // 2)]
    return min(found, key=lambda blocks: sum(len(block) + _FRAME for block in blocks))


def _wide(table: Sequence[Row]) -> int:
    return _EDGES + sum(_widest(column) + _GAP for column in zip(*table, strict=True))


def _widest(cells: Iterable[str]) -> int:
    return max((cell_len(line) for cell in cells for line in cell.split("\n")), default=0)


def _narrowest(table: Sequence[Row]) -> int:
    """Width of the narrowest column beside the names."""
    return min(_widest(column) for column in list(zip(*table, strict=True))[1:])


def _folded(table: list[list[str]], width: int, longest: int) -> list[list[list[str]]]:
    """Blocks of as many columns as fit, each beside the first one, whose names have at most ``longest`` letters."""
    names, *columns = ([*column] for column in zip(*table, strict=True))
    names = [names[0], *shortened_names(names[1:], max(longest, _LEAST_NAME))]
    left = max(width - _EDGES - _GAP - _widest(names), _LEAST_CELL + _GAP)
    heads = shortened_names([column[0] for column in columns], left - _GAP)
    columns = [[head, *column[1:]] for head, column in zip(heads, columns, strict=True)]
    blocks: list[list[list[str]]] = [[]]
    taken = 0
    for column in columns:
        wide = min(_widest(column) + _GAP, left)
        if blocks[-1] and taken + wide > left:
            blocks.append([])
            taken = 0
        blocks[-1].append(column)
        taken += wide
    return [[list(row) for row in zip(names, *block, strict=True)] for block in blocks]


def shortened(name: str, length: int) -> str:
    """A name of at most ``length`` letters, its middle left out where it is longer."""
    if _widest([name]) <= length:
        return name
    name = name.replace("\n", "")
    tail = (length - 1) // 2
    return f"{name[: length - 1 - tail]}{_MARK}{name[len(name) - tail :]}"


def shortened_names(names: Sequence[str], length: int) -> list[str]:
    """:func:`shortened` names; those that would then be the same show the part in which they differ, or get a number."""
    short = [shortened(name, length) for name in names]
    for text, count in Counter(short).items():
        alike = [index for index, other in enumerate(short) if other == text]
        if count > 1 and len({names[index] for index in alike}) > 1:
            for index, found in zip(alike, _told_apart([names[index] for index in alike], length), strict=True):
                short[index] = found
    return short


def _told_apart(names: Sequence[str], length: int) -> list[str]:
    """Names that differ in their middles, by what they begin with and the part from where they differ."""
    first = next(place for place, letters in enumerate(zip(*names, strict=False)) if len(set(letters)) > 1)
    head = max(length // 3, 1)
    rest = length - head - 2
    begin = max(min(first - 1, *(len(name) - rest for name in names)), head)
    parts = [f"{name[:head]}{_MARK}{name[begin : begin + rest]}" + (_MARK if begin + rest < len(name) else "") for name in names]
    if len(set(parts)) == len(set(names)):
        return parts
    order = {name: f"~{number}" for number, name in enumerate(dict.fromkeys(names), 1)}
    return [shortened(name, length - len(order[name])) + order[name] for name in names]
