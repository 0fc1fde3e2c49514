"""How many trials fit on a cluster, worked out from the resources of its nodes."""

import pytest

from kdr.config.study import Resources
from kdr.errors import ResourcesError
from kdr.run.cluster.trial_resources import ResolvedResources, num_concurrent, resolve

LAPTOP = [{"CPU": 2.0}]
SERVER = [{"CPU": 64.0, "GPU": 8.0}]
SEVERAL = [{"CPU": 4.0}, {"CPU": 16.0, "GPU": 2.0}, {"CPU": 16.0, "GPU": 3.0}]


def test_auto_is_one_gpu_per_worker_where_there_are_any() -> None:
    assert resolve(Resources(), SEVERAL).gpus_per_worker == 1
    assert resolve(Resources(), LAPTOP).gpus_per_worker == 0
    assert resolve(Resources(gpus_per_worker=0), SERVER).gpus_per_worker == 0


@pytest.mark.parametrize(
    ("resources", "nodes", "expected"),
    [
        (ResolvedResources(), LAPTOP, 2),
        (ResolvedResources(cpus_per_worker=0.5), LAPTOP, 4),
        (ResolvedResources(workers=2), LAPTOP, 1),
        (ResolvedResources(workers=2), [*LAPTOP, *LAPTOP], 2),
        (ResolvedResources(workers=4), [*LAPTOP, *LAPTOP], 1),  # spread over two nodes
        (ResolvedResources(gpus_per_worker=1), SERVER, 8),
        (ResolvedResources(gpus_per_worker=1), SEVERAL, 5),
        (ResolvedResources(gpus_per_worker=2), SEVERAL, 2),
        (ResolvedResources(workers=2, gpus_per_worker=1), SEVERAL, 2),
        (ResolvedResources(gpus_per_worker=0.5), SEVERAL, 10),
        # a fraction is of one GPU: two on each
        (ResolvedResources(gpus_per_worker=0.4), SEVERAL, 10),
        (
            ResolvedResources(gpus_per_worker=1 / 3, cpus_per_worker=0.5),
            [{"CPU": 64.0, "GPU": 1.0}],
            3,
        ),
        (ResolvedResources(gpus_per_worker=1, cpus_per_worker=8), SEVERAL, 4),  # CPUs run out first
        (ResolvedResources(gpus_per_worker=1, max_concurrent=3), SERVER, 3),
    ],
)
def test_as_many_trials_run_as_fit(
    resources: ResolvedResources, nodes: list[dict[str, float]], expected: int
) -> None:
    assert num_concurrent(resources, nodes) == expected


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        (
            ResolvedResources(gpus_per_worker=1),
            r"one trial needs 1 CPUs and 1 GPUs on one node, got nodes with 2 CPUs and 0 GPUs",
        ),
        (
            ResolvedResources(workers=3),
            r"needs 3 workers with 1 CPUs and 0 GPUs each, .* room for 2 workers. Lower",
        ),
        (
            ResolvedResources(cpus_per_worker=3),
            r"needs 3 CPUs and 0 GPUs on one node",
        ),
    ],
)
def test_a_trial_that_can_never_fit_is_refused(resources: ResolvedResources, message: str) -> None:
    with pytest.raises(ResourcesError, match=message):
        num_concurrent(resources, LAPTOP)
