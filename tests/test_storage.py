from pathlib import Path

import pytest

from leapray import storage
from leapray.errors import UserError


def write_half(url: str) -> None:
    with storage.atomic_file(url) as file:
        file.write(b"half")
        raise RuntimeError


def test_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "file.bin"
    storage.write_bytes(str(target), b"old")
    with pytest.raises(RuntimeError):
        write_half(str(target))
    assert target.read_bytes() == b"old"
    assert [path.name for path in target.parent.iterdir()] == ["file.bin"]


def test_an_object_store_shows_a_file_only_when_it_is_whole() -> None:
    url = "memory://bucket/file.bin"
    with pytest.raises(RuntimeError):
        write_half(url)
    assert not storage.exists(url)
    storage.write_bytes(url, b"whole")
    assert storage.read_bytes(url) == b"whole"


def test_listing_is_sorted_and_passes_over_leftovers(tmp_path: Path) -> None:
    for name in ("b.nc", "a/z.nc", ".tmp-1-b.nc", "c.txt"):
        storage.write_bytes(str(tmp_path / name), b"")
    assert storage.list_files(str(tmp_path), ".nc") == [str(tmp_path / "a/z.nc"), str(tmp_path / "b.nc")]


def test_numbers_keep_every_bit_and_nan_is_refused(tmp_path: Path) -> None:
    values = [1e-51, 0.1, -4.9406564584124654e-324]
    storage.write_json(str(tmp_path / "x.json"), values)
    assert storage.read_json(str(tmp_path / "x.json")) == values
    with pytest.raises(ValueError, match="JSON compliant"):
        storage.write_json(str(tmp_path / "x.json"), [float("nan")])


@pytest.mark.parametrize(
    ("url", "sentence"),
    [("/nowhere/at/all.json", "/nowhere/at/all.json: no such file"), ("nope://x/y", "nope://x/y: Protocol not known: nope")],
)
def test_what_is_not_there_is_named(url: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        storage.read_bytes(url)


def test_broken_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(UserError, match=r"x\.json: not valid json"):
        storage.read_json(str(tmp_path / "x.json"))


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/x\.json: cannot be written \("):
        storage.write_json(str(tmp_path / "file" / "x.json"), {})


def test_a_fingerprint_follows_names_and_content(tmp_path: Path) -> None:
    one, other = str(tmp_path / "one"), str(tmp_path / "other")
    storage.write_bytes(one, b"a")
    storage.write_bytes(other, b"a")
    before = storage.fingerprint(one, other)
    assert storage.fingerprint(one, other) == before != storage.fingerprint(one)
    storage.write_bytes(other, b"bb")
    assert storage.fingerprint(one, other) != before
