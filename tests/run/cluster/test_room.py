"""Whether a trial fits into the free resources, and the message while it does not."""

import pytest

from kdr.run.cluster.room import has_room, waiting_text
from kdr.run.cluster.trial_resources import ResolvedResources


@pytest.mark.parametrize(
    ("resources", "free", "expected"),
    [
        (ResolvedResources(), [{"CPU": 1.0}], True),
        (ResolvedResources(), [{}], False),
        (ResolvedResources(), [], False),
        (
            ResolvedResources(cpus_per_worker=2),
            [{"CPU": 1.0}, {"CPU": 1.0}],
            False,
        ),
        (ResolvedResources(workers=2), [{"CPU": 1.0}, {"CPU": 1.0}], True),
        (ResolvedResources(gpus_per_worker=1), [{"CPU": 8.0}, {"CPU": 8.0, "GPU": 0.5}], False),
        (ResolvedResources(gpus_per_worker=1), [{"CPU": 8.0, "GPU": 1.0}], True),
        (ResolvedResources(gpus_per_worker=0.5), [{"CPU": 8.0, "GPU": 0.5}], True),
        (ResolvedResources(gpus_per_worker=0.4), [{"CPU": 8.0, "GPU": 0.2}], False),
        (
            ResolvedResources(gpus_per_worker=0.1),
            [{"CPU": 8.0, "GPU": 0.30000000000000004 - 0.2}],
            True,
        ),
        (
            ResolvedResources(gpus_per_worker=1, workers=2),
            [{"CPU": 8.0, "GPU": 1.5}, {"CPU": 8.0, "GPU": 1.0}],
            True,
        ),
        (ResolvedResources(gpus_per_worker=1, workers=2), [{"CPU": 8.0, "GPU": 1.5}], False),
        (
            ResolvedResources(gpus_per_worker=2),
            [{"CPU": 8.0, "GPU": 1.0}, {"CPU": 8.0, "GPU": 1.0}],
            False,
        ),
    ],
)
def test_a_trial_fits_if_all_its_workers_do(
    resources: ResolvedResources, free: list[dict[str, float]], expected: bool
) -> None:
    assert has_room(resources, free) is expected


def test_the_message_names_what_is_needed_what_is_free_and_who_holds_the_rest() -> None:
    others = ["/opt/venv/bin/python /kdr/orchestrate.py run /kdr/a.yaml", "x" * 500]
    text = waiting_text(
        ResolvedResources(workers=2, gpus_per_worker=1, cpus_per_worker=4),
        [{"CPU": 3.0}, {"CPU": 1.0, "GPU": 1.0}],
        others,
    )
    assert text.startswith(
        "Waiting for room: one trial needs 2 workers with 4 CPUs and 1 GPUs each; free: 4 CPUs "
        "and 1 GPUs. Held by: python orchestrate.py run /kdr/a.yaml, xxx"
    )
    assert len(text) < 400
