import pytest

from kdr.errors import ConfigError
from kdr.report.measures import measure_of, measured
from kdr.results.reader import read_log
from kdr.results.schema import EpochRow
from kdr.results.writer import LogWriter
from tests.conftest import AblationLog, ExampleLog


def values(log: AblationLog | ExampleLog, *names: str) -> dict[str, dict[str, float]]:
    found = read_log(log.storage, log.study)
    return measured(found, found.states(), [measure_of(name) for name in names])


def test_every_measure_comes_from_its_own_column(ablation_log: AblationLog) -> None:
    columns = {
        "ap_per_class": {"star": 0.5, "a/b": 0.25},
        "peak_memory_bytes": 2**30,
        "extras": {"kdr.scale": 3.0, "parameters": 2e6},
        "seconds": 8.0,
    }
    ablation_log.arm("baseline", [0.3], epoch_columns=columns)
    names = (
        "AP",
        "AP50",
        "AP/star",
        "AP/a/b",
        "s/epoch",
        "memory",
        "parameters",
        "extras/kdr.scale",
    )
    found = values(ablation_log, *names)
    assert {name: by_key["baseline-0"] for name, by_key in found.items()} == {
        "AP": 0.3,
        "AP50": 0.5,
        "AP/star": 0.5,
        "AP/a/b": 0.25,
        "s/epoch": 8.0,
        "memory": 2.0**30,
        "parameters": 2e6,
        "extras/kdr.scale": 3.0,
    }


def test_the_last_evaluation_counts_for_a_class(example_log: ExampleLog) -> None:
    example_log.trial("a", epoch=1)
    with LogWriter(example_log.storage, "example") as writer:
        by_epoch: dict[int, dict[str, float] | None] = {2: {"star": 0.2}, 3: {"star": 0.3}, 4: None}
        for epoch, classes in by_epoch.items():
            writer.epoch(
                EpochRow(
                    study="example", key="a", attempt=1, epoch=epoch, step=1, ap_per_class=classes
                )
            )
    assert values(example_log, "AP/star") == {"AP/star": {"a": 0.3}}


@pytest.mark.parametrize(
    ("name", "title", "scale"),
    [
        ("AP75", "AP75 (%)", 100),
        ("s/epoch", "s/epoch", 1),
        ("memory", "memory (GiB)", 2**-30),
        ("parameters", "parameters (M)", 1e-6),
    ],
)
def test_a_measure_has_a_unit(name: str, title: str, scale: float) -> None:
    assert (measure_of(name).title, measure_of(name).scale) == (title, scale)


def test_nan_and_null_are_not_values(ablation_log: AblationLog) -> None:
    ablation_log.arm("baseline", {0: float("nan"), 1: 0.2})
    assert values(ablation_log, "AP")["AP"] == {"baseline-1": 0.2}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mAP", r"--metric: must be one of AP, .* extras/<name>, got 'mAP'\. s/epoch excludes"),
        (
            "AP/dog",
            (r"--metric: must be a number that these trials log, got 'AP/dog'\. Logged: AP/star"),
        ),
        ("extras/x", r"got 'extras/x'\. None is logged"),
    ],
)
def test_what_is_not_logged_is_refused(ablation_log: AblationLog, name: str, message: str) -> None:
    ablation_log.arm("baseline", [0.3], epoch_columns={"ap_per_class": {"star": 0.5}})
    with pytest.raises(ConfigError, match=message):
        values(ablation_log, name)
