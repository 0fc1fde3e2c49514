"""A Ray for tests that run studies in separate processes."""

from collections.abc import Iterator

import pytest
import ray

from kdr.run.cluster.ray_session import ray_session


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Address of a Ray that outlives the drivers that join it."""
    if ray.is_initialized():
        ray.shutdown()
    with ray_session(None):
        yield ray.get_runtime_context().gcs_address
