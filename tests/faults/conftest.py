"""A Ray for the tests whose studies are processes of their own."""

from collections.abc import Iterator

import pytest
import ray

from kdr.run.cluster.ray_session import ray_session


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A Ray that outlives the drivers which join it."""
    if ray.is_initialized():
        ray.shutdown()
    with ray_session(None):
        yield ray.get_runtime_context().gcs_address
