"""Files that Ray would import in place of its own modules are found by their names, and no others."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from leapray.cluster import shadows
from leapray.errors import UserError


def found(directory: Path) -> list[str]:
    return [Path(path).name for path in shadows.shadows(str(directory))]


@pytest.mark.parametrize(
    "name", ["calendar.py", "torch.py", "yaml.py", "queue.py", "leapray.py", "calendar.cpython-311-x86_64-linux-gnu.so"]
)
def test_a_file_with_the_name_of_a_module_that_ray_imports_is_refused_by_its_path(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    assert found(tmp_path) == [name]
    with pytest.raises(UserError) as refused:
        shadows.refuse(str(tmp_path))
    assert str(tmp_path / name) in str(refused.value)


def test_so_is_a_package_but_not_a_plain_folder(tmp_path: Path) -> None:
    for name in ("numpy", "torch"):
        (tmp_path / name).mkdir()
    (tmp_path / "numpy" / "__init__.py").touch()
    assert found(tmp_path) == ["numpy"]


def test_what_shadows_nothing_is_left_alone(tmp_path: Path) -> None:
    # the interpreter has time and sys itself, no module imports turtle, and pytest is none of Ray's
    for name in ("analysis.py", "networks.py", "time.py", "sys.py", "turtle.py", "pytest.py", "calendar.txt", "calendar.py.bak"):
        (tmp_path / name).touch()
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "__init__.py").touch()
    assert found(tmp_path) == []


def test_a_working_copy_of_leapray_does_not_shadow_itself() -> None:
    assert found(Path(__file__).parent.parent.parent) == []


def test_a_working_directory_that_was_removed_is_told(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    program = f"import os, sys; os.rmdir({str(gone)!r}); from leapray.cli import main; sys.argv[1:] = ['check', 'x']; main()"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent.parent)}
    done = subprocess.run([sys.executable, "-c", program], cwd=gone, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: the working directory was removed; change to another one\n"
