"""Ratios of contestants that take turns, and the bars that they are held to."""

from pathlib import Path
from typing import Any

import pytest

from leapray.bench.compare import Bar, Comparison, Settings, interleave, show
from leapray.console import console


def settings(**values: Any) -> Settings:
    return Settings(Path("unused"), **values)


def test_a_ratio_is_the_median_of_those_of_the_rounds() -> None:
    comparison = Comparison.of("b", "c", "rows/s", [10.0, 40.0, 90.0], [10.0, 20.0, 10.0], Bar(2))
    assert comparison.ratios == (1.0, 2.0, 9.0)
    assert comparison.to_dict() == {
        "bench": "b",
        "case": "c",
        "ours": 40.0,
        "baseline": 10.0,
        "unit": "rows/s",
        "ratio": 2.0,
        "bar": 2,
        "met": True,
    }


@pytest.mark.parametrize(("bar", "low", "high"), [(Bar(3), False, True), (Bar(3, at_most=True), True, False)])
def test_a_bar_is_met_at_its_value_and_on_its_good_side(bar: Bar, low: bool, high: bool) -> None:
    assert (bar.met(2.9), bar.met(3.0), bar.met(3.1)) == (low, True, high)


def test_without_a_bar_nothing_is_met_or_missed() -> None:
    row = Comparison.of("b", "c", "s", [1.0], [2.0]).to_dict()
    assert row["bar"] is None
    assert row["met"] is None


def test_contestants_take_turns_and_the_first_round_does_not_count() -> None:
    calls: list[str] = []
    done: list[tuple[int, int]] = []

    def contestant(name: str) -> dict[str, float]:
        calls.append(name)
        return {"calls": len(calls)}

    found = interleave(
        {name: lambda name=name: contestant(name) for name in "ab"}, settings(rounds=2, progress=lambda *at: done.append(at))
    )
    assert calls == ["a", "b", "b", "a", "a", "b"]
    assert found == {"a": {"calls": [4, 5]}, "b": {"calls": [3, 6]}}
    assert done == [(number, 6) for number in range(1, 7)]


def test_a_table_fits_a_narrow_terminal() -> None:
    wide = Comparison.of("ingest", "memory, 8x rows against 1x", "rows/s", [123456.0, 999999.0], [12345.0, 67890.0], Bar(0.85))
    with console.capture() as captured:
        show([wide, Comparison.of("ingest", "first batch, flat parquet", "s", [0.1234], [12.34])])
    lines = captured.get().splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 80
    assert any("562k" in line and ">=0.85 met" in line for line in lines)
