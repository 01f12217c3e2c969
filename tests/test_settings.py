from pathlib import Path

import pytest

from leapray.errors import UserError
from leapray.settings import claim, difference, flatten


def test_difference_names_what_changed() -> None:
    assert flatten({"a": {"b": 1}, "c": 2}) == {"a.b": 1, "c": 2}
    assert difference({"a": {"b": 1}, "c": 2}, {"a": {"b": 3}, "c": 2}) == "a.b: 3, now 1"


def test_a_claimed_directory_continues_only_with_the_same_settings(tmp_path: Path) -> None:
    claim(str(tmp_path / "here"), "settings.json", {"stride": 7}, "a conversion", ".parquet")
    (tmp_path / "here" / "x.parquet").touch()
    claim(str(tmp_path / "here"), "settings.json", {"stride": 7}, "a conversion", ".parquet")
    with pytest.raises(UserError, match=r"here: holds a conversion of other settings \(stride: 7, now 6\)"):
        claim(str(tmp_path / "here"), "settings.json", {"stride": 6}, "a conversion", ".parquet")


def test_a_note_without_results_binds_nobody_and_results_without_a_note_are_refused(tmp_path: Path) -> None:
    claim(str(tmp_path), "settings.json", {"stride": 7}, "a conversion", ".parquet")
    claim(str(tmp_path), "settings.json", {"stride": 6}, "a conversion", ".parquet")
    (tmp_path / "settings.json").unlink()
    (tmp_path / "x.parquet").touch()
    with pytest.raises(UserError, match=r"holds \.parquet files but no settings\.json"):
        claim(str(tmp_path), "settings.json", {"stride": 6}, "a conversion", ".parquet")


def test_a_file_in_the_place_of_a_directory_is_told_as_one(tmp_path: Path) -> None:
    (tmp_path / "out.parquet").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"out\.parquet: is a file, expected a directory"):
        claim(str(tmp_path / "out.parquet"), "settings.json", {"stride": 7}, "a prediction", ".parquet")
    assert (tmp_path / "out.parquet").read_bytes() == b"mine"
