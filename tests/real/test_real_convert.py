"""Real ClimSim files: what a researcher's first conversion gives."""

from pathlib import Path

import pytest

from leapray.climsim.calendar import Moment, parse_file_name

pytestmark = pytest.mark.real


def test_a_month_of_the_archive_has_a_hole(climsim: Path) -> None:
    streams = {"mli": set[int](), "mlo": set[int]()}
    for path in (climsim / "train").glob("*/*.nc"):
        stream, step = parse_file_name(path.name) or ("", 0)
        streams[stream].add(step)
    assert [Moment.of_step(step).ymd for step in streams["mli"] - streams["mlo"]] == [80805]
    assert not streams["mlo"] - streams["mli"]
