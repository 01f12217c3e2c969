from pathlib import Path

import pytest

from leapray.errors import UserError
from leapray.settings import claim, difference, flatten


def test_difference_names_what_changed() -> None:
    assert flatten({"a": {"b": 1}, "c": 2}) == {"a.b": 1, "c": 2}
    assert difference({"a": {"b": 1}, "c": 2}, {"a": {"b": 3}, "c": 2}) == "a.b: 3, now 1"


def test_a_claimed_directory_continues_only_with_the_same_settings(tmp_path: Path) -> None:
    claim(str(tmp_path / "here"), "settings.json", {"stride": 7}, "a conversion")
    claim(str(tmp_path / "here"), "settings.json", {"stride": 7}, "a conversion")
    with pytest.raises(UserError, match=r"here: holds a conversion of other settings \(stride: 7, now 6\)"):
        claim(str(tmp_path / "here"), "settings.json", {"stride": 6}, "a conversion")
