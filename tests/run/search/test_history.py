"""The past of a search whose last run was killed."""

from dataclasses import replace
from pathlib import Path

from kdr.config.study import Study, study_from
from kdr.results.reader import read_log
from kdr.results.schema import ArmRow, Event
from kdr.results.writer import LogWriter
from kdr.run.search.history import History
from tests.conftest import ExampleLog


def study_of(log: ExampleLog) -> Study:
    return study_from(log.content, folder=Path("/"))


def test_a_trial_that_was_planned_and_never_started_runs_first_and_is_charged_once(
    example_log: ExampleLog,
) -> None:
    example_log.trial("ended", parameters={"distill.kdr.weight": 1.0})
    with LogWriter(example_log.storage, example_log.study) as log:
        row = ArmRow(
            study=example_log.study,
            key="planned",
            arm="trial-0002",
            parameters='{"distill.kdr.weight": 5.0}',
        )
        log.arms([row, replace(row, arm="trial-0003")])
    history = History.of(read_log(example_log.storage), study_of(example_log))
    assert history.interrupted == ({"distill.kdr.weight": 5.0},)
    assert history.used.trials == 2
    assert history.numbers == {"ended": 1, "planned": 2}


def test_a_trial_that_another_study_trained_runs_first_unless_it_was_completed(
    example_log: ExampleLog,
) -> None:
    other = ExampleLog(example_log.storage, study="other")
    ends: dict[str, Event] = {
        "theirs-1": "completed",
        "theirs-2": "failed",
        "theirs-3": "stopped_early",
        "theirs-4": "interrupted",
    }
    for key, event in ends.items():
        other.trial(key, event=event, epoch=4 if event == "completed" else 2)
    with LogWriter(example_log.storage, example_log.study) as log:
        for number, key in enumerate(ends, start=1):
            point = f'{{"distill.kdr.weight": {number}.0}}'
            log.arms(
                [
                    ArmRow(
                        study=example_log.study,
                        key=key,
                        parameters=point,
                        arm=f"trial-{number:04}",
                    )
                ]
            )
    history = History.of(read_log(example_log.storage), study_of(example_log))
    assert history.interrupted == tuple(
        {"distill.kdr.weight": weight} for weight in (2.0, 3.0, 4.0)
    )
    assert history.used.trials == 3
    assert [(key, known.end, known.parameters) for key, known in history.known.items()] == [
        ("theirs-1", "completed", {"distill.kdr.weight": 1.0})
    ]
    assert [(progress.key, progress.state) for progress in history.progress("AP")] == [
        ("theirs-1", "completed")
    ]


def test_early_stopping_still_decides_about_the_last_epoch_of_a_trial_that_resumes(
    example_log: ExampleLog,
) -> None:
    example_log.trial("ended")
    example_log.trial("running", event="started", epoch=3)
    reached = History.of(read_log(example_log.storage), study_of(example_log)).reached
    assert sorted(reached["ended"]) == [1, 2, 3, 4]
    assert sorted(reached["running"]) == [1, 2]
