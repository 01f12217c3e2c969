"""Fixtures that more than one room's tests use."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One small local Ray for every test that needs it."""
    import ray

    from leapray import cluster

    cluster.start(cpus=8)
    yield
    ray.shutdown()
