"""The line that long verbs begin with."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from leapray import cli, provenance
from leapray.recipe import load_recipe

RECIPE = str(Path(__file__).parent.parent / "jobs" / "recipes" / "demo.yaml")


def test_a_line_tells_versions_revision_place_and_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "versions", lambda: {"leapray": "1.2", "python": "3.11.7", "torch": "2.13.0", "ray": "2.60.0"})
    monkeypatch.setattr(provenance, "revision", lambda: "0123456789abcdef-dirty")
    told = provenance.line("this machine (2 CPUs)", "recipe demo abc")
    assert told == "leapray 1.2 (0123456789-dirty), Python 3.11.7, torch 2.13.0, Ray 2.60.0, on this machine (2 CPUs); recipe demo abc"
    monkeypatch.undo()
    monkeypatch.setattr(provenance, "_git_revision", lambda: None)
    assert f"({provenance.revision()})" in provenance.line("x")


def test_code_without_a_revision_is_told_by_its_source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(provenance.leapray, "__file__", str(tmp_path / "package" / "__init__.py"))
    found = set()
    for place, content in (("package/a.py", "1"), ("package/a.py", "2"), ("package/in/b.py", "2")):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text(content)
        found.add(provenance.revision())
    assert len(found) == 3
    assert all(re.fullmatch("source-[0-9a-f]{8}", revision) for revision in found)


def test_the_digest_is_that_of_the_values_not_of_the_file() -> None:
    recipe, changed = load_recipe(RECIPE), load_recipe(RECIPE, ["training.seed=17"])
    assert provenance.digest(recipe) == provenance.digest(load_recipe(RECIPE, [f"training.seed={recipe.training.seed}"]))
    assert len({provenance.digest(recipe), provenance.digest(changed), provenance.digest(recipe, changed)}) == 3


def test_it_is_told_at_once_without_torch_or_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    code = (
        "import sys\nfrom leapray import provenance\n"
        "with provenance.place() as where:\n    print(provenance.line(where))\n"
        "assert not {'torch', 'ray'} & set(sys.modules)\n"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    marks = r"([0-9a-f]{10}(-dirty)?|source-[0-9a-f]{8})"
    assert re.fullmatch(rf"leapray \S+ \({marks}\), Python \S+, torch \S+, Ray \S+, on this machine \(\d+ CPUs?.*\)\n", told)


@pytest.mark.ray
def test_a_joined_cluster_is_told_by_its_head_and_its_size(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    # whatever it holds: the cluster that this process is part of is the one that is joined
    monkeypatch.setenv("RAY_ADDRESS", "me:secret@nowhere:1")
    with provenance.place() as where:
        assert where == f"the cluster at {ray.get_runtime_context().gcs_address} (1 node, 8 CPUs)"
    assert ray.is_initialized()


def test_a_verb_begins_with_it_unless_its_words_are_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def status(*words: str) -> object:
        monkeypatch.setattr("sys.argv", ["leapray", *words])
        with pytest.raises(SystemExit) as exited:
            cli.main()
        return exited.value.code

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert status("convert", str(tmp_path / "nowhere"), str(tmp_path / "flat")) == 2
    printed = capsys.readouterr()
    assert re.fullmatch(r"leapray .* on this machine .*\n", printed.out)
    assert re.fullmatch(r"error: .*nowhere.*\n", printed.err)
    assert status("convert", str(tmp_path), str(tmp_path / "flat"), "--start", "soon") == 2
    assert capsys.readouterr().out == ""
