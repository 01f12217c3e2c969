import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leapray.console import table, terminal
from leapray.console.tables import fitted, shortened, shortened_names

NAMES = [f"low_res_aqua_with_features_seed_{seed}_huber_and_confidence_head" for seed in range(8)]
ROWS = [("validation", 0.1), ("test", -8.6e13), ("95 % within", 0.01), ("parameters", 18_226_092)]


@pytest.fixture
def shown(output):
    """Lines of a table on a console of some width."""

    def lines(width, header, rows, title="scores"):
        written = output(a_terminal=False)
        terminal.console.width = width
        table(title, header, rows)
        return [line.rstrip() for line in written.getvalue().splitlines() if line.strip()]

    return lines


@pytest.mark.parametrize("width", [80, 60])
@pytest.mark.parametrize("names_are", ["columns", "rows"])
def test_long_names_stay_distinct_and_every_figure_stands_once(shown, width, names_are):
    cells = [[f"{1000 * row + column + 1000}" for column in range(len(NAMES))] for row in range(len(ROWS))]
    header, rows = ("", *NAMES), [(name, *found) for (name, _), found in zip(ROWS, cells, strict=True)]
    if names_are == "rows":
        header, *rows = map(tuple, zip(header, *rows, strict=True))
    lines = shown(width, header, rows)
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    # the part in which the names differ is still there
    found = set(re.findall(r"low_\S+", text))
    assert len(found) == len(NAMES)
    assert all(any(f"_{seed}_" in name for name in found) for seed in range(8))
    for name, _ in ROWS:
        assert name in text
    for figure in (figure for found in cells for figure in found):
        assert len(re.findall(rf"(?<!\d){figure}(?!\d)", text)) == 1
    assert text.count("scores") == 1


def test_a_table_that_fits_is_one_block(shown):
    assert fitted(("", "a", "b"), [("x", "1", "2")], 20) == [[["", "a", "b"], ["x", "1", "2"]]]
    title, header, _, row = shown(20, ("", "a", "b"), [("[x]", "1", "2")])
    assert (title, header.split(), row.split()) == ("scores", ["a", "b"], ["[x]", "1", "2"])


def test_many_rows_are_folded_and_few_are_turned():
    columns = [f"column_{index}" for index in range(12)]
    many = fitted(("", *columns), [(f"row {row}", *map(str, range(12))) for row in range(50)], 80)
    assert all(len(block) == 51 for block in many)
    few = fitted(("", *columns), [(f"row {row}", *map(str, range(12))) for row in range(3)], 40)
    assert [len(block) for block in few] == [13]


def test_a_long_cell_is_broken_into_lines(shown):
    lines = shown(60, ("", "one", "two"), [("key", "word " * 40, "x")])
    assert max(map(len, lines)) <= 60
    assert " ".join(lines).count("word") == 40


def test_a_name_is_shortened_in_its_middle():
    assert shortened("low_res_aqua_seed_1", 9) == "low_…ed_1"
    assert shortened("short", 9) == "short"


@given(st.lists(st.text("ab_/", min_size=1, max_size=40), unique=True, min_size=1, max_size=8), st.integers(8, 30))
def test_shortened_names_are_distinct_and_short(names, length):
    short = shortened_names(names, length)
    assert len(set(short)) == len(names)
    assert all(len(name) <= length for name in short)
