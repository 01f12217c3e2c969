"""Real rows, converted once for all tests of a session."""

from pathlib import Path

import pytest

from leapray.data.convert import convert


@pytest.fixture(scope="session")
def flat(climsim: Path, ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive's complete pairs as flat parquet."""
    destination = tmp_path_factory.mktemp("real") / "flat"
    convert(str(climsim / "train"), str(destination), skip_incomplete=True)
    return destination
