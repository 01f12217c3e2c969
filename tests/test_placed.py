"""What a message says of a place where nothing was found."""

from collections.abc import Callable
from pathlib import Path

import pytest

from leapray import storage
from leapray.climsim.pairs import find_pairs
from leapray.data.flat import survey
from leapray.data.shards import load_prepared
from leapray.errors import UserError
from leapray.evaluation import tables
from leapray.models.directory import load_info

READERS: tuple[Callable[[str], object], ...] = (load_prepared, load_info, survey, tables.files, find_pairs, storage.read_bytes)


@pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__)
def test_a_relative_path_is_told_with_the_place_it_stands_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[[str], object]
) -> None:
    def said(url: str | Path) -> str:
        with pytest.raises(UserError) as raised:
            read(str(url))
        return str(raised.value)

    monkeypatch.chdir(tmp_path)
    assert said("model").startswith(f"model (looked for at {tmp_path}/model): ")
    assert said(tmp_path / "model").startswith(f"{tmp_path}/model: ")
    job = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_0"
    job.mkdir(parents=True)
    monkeypatch.chdir(job)
    for url in ("model", job / "model"):
        sentence = said(url)
        assert sentence.count(str(job / "model")) == 1
        assert "the job's own copy of the working directory" in sentence
        assert "an absolute path that all nodes see" in sentence
