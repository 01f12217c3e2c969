"""Fixtures that more than one room's tests use."""

import logging
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from leapray import faults
from tests.s3_server import Endpoint

# a machine that runs tests may be busy with others
hypothesis.settings.register_profile("leapray", deadline=None)
hypothesis.settings.load_profile("leapray")
os.environ.setdefault("LEAPRAY_RAY_START_SECONDS", "300")
hypothesis.settings.register_profile("leapray", deadline=None)
hypothesis.settings.load_profile("leapray")


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[Endpoint]:
    """The S3 endpoint of this session's environment; it costs a socket until ``s3`` is asked for."""
    endpoint = Endpoint()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in endpoint.environment().items():
            patch.setenv(name, value)
        yield endpoint
    endpoint.stop()


@pytest.fixture(scope="session")
def _s3_store(s3_endpoint: Endpoint) -> Iterator[None]:
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    s3_endpoint.store = server.get_host_and_port()
    yield
    server.stop()


@pytest.fixture
def s3(s3_endpoint: Endpoint, _s3_store: None) -> Iterator[Endpoint]:
    """The endpoint with the store behind it, calm at the beginning and at the end."""
    s3_endpoint.calm()
    yield s3_endpoint
    s3_endpoint.calm()


@pytest.fixture
def bucket(s3: Endpoint) -> str:
    """URL of a new, empty bucket."""
    import s3fs

    name = f"bucket-{uuid.uuid4().hex}"
    s3fs.S3FileSystem(use_listings_cache=False).mkdir(name)
    s3.calm()
    return f"s3://{name}"


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that storage would have waited between attempts."""
    waited: list[float] = []
    monkeypatch.setattr(faults, "sleep", waited.append)
    return waited


@pytest.fixture(scope="session")
def climsim() -> Path:
    """Folder of real ClimSim files in the archive's layout, with train/0008-MM/ below it; tests that use it are marked ``real``."""
    named = os.environ.get("LEAPRAY_CLIMSIM")
    if not named:
        pytest.skip("needs real ClimSim files: set LEAPRAY_CLIMSIM to a folder that has train/0008-MM/ below it")
    folder = Path(named)
    if not (folder / "train").is_dir():
        pytest.fail(f"LEAPRAY_CLIMSIM names {folder}, and there is no folder train below it")
    return folder


@pytest.fixture(scope="session")
def ray_cluster(s3_endpoint: Endpoint) -> Iterator[None]:
    """One small local Ray for every test that needs it; its workers inherit the S3 endpoint."""
    import ray

    from leapray.cluster import session

    session.start(cpus=8)
    yield
    ray.shutdown()
