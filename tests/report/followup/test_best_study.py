from pathlib import Path

import pytest

from kdr.config.study import read_study
from kdr.config.trial import TrialConfig
from kdr.errors import ConfigError
from kdr.report.followup.best_study import best_study_yaml
from kdr.report.ranking import best_trial
from kdr.results.reader import read_log
from tests.conftest import ExampleLog


def exported(example_log: ExampleLog, tmp_path: Path) -> tuple[Path, TrialConfig]:
    log = read_log(example_log.storage)
    trial = best_trial(log, "example")
    path = tmp_path / "best.yaml"
    path.write_text(best_study_yaml(log, "example", trial, "AP"), encoding="utf-8")
    return path, TrialConfig.model_validate_json(trial.state.config)


def test_the_file_reads_back_to_the_trial_on_the_validation_set(
    example_log: ExampleLog, tmp_path: Path
) -> None:
    example_log.trial(
        "a", parameters={"distill.kdr.weight": 1.0, "distill.kdr.review_links": []}, AP=0.1
    )
    best = {
        "distill.kdr.weight": 1e-5,
        "distill.kdr.review_links": ["P5->P4", "P4->P3"],
        "training.clip_norm": None,
    }
    example_log.trial("b", parameters=best, AP=0.4)
    path, config = exported(example_log, tmp_path)
    study = read_study(path)
    assert study.search is None
    assert config.data.search_split == 64
    assert study.base == config.with_changes(data=config.data.with_changes(search_split=0))
    assert study.base.distill.kdr is not None
    assert study.base.distill.kdr.weight == 1e-5
    assert study.base.training.clip_norm is None


def test_the_head_names_the_trial_and_its_split(example_log: ExampleLog, tmp_path: Path) -> None:
    example_log.trial("a", AP=0.25, commit="abc")
    head = [
        line
        for line in exported(example_log, tmp_path)[0].read_text().splitlines()
        if line.startswith("#")
    ]
    assert head == [
        "# The best trial of the study example by AP: AP 0.2500 at epoch 4, seed 0.",
        "# Trial a, key a, commit abc.",
        (
            "# That AP was measured on held-out training images (search_split: 64), the same "
            "images on which the trial was chosen."
        ),
        (
            "# This study trains on all training images and reports on the validation set, which "
            "the search has not seen."
        ),
    ]


def test_the_resources_of_the_study_are_kept(example_log: ExampleLog, tmp_path: Path) -> None:
    example_log.content["resources"] = {"loader_workers": 3}
    example_log.trial("a")
    assert read_study(exported(example_log, tmp_path)[0]).resources.loader_workers == 3


@pytest.mark.parametrize("name", ["1e4", "089", "off", "null", "0x1F", "~", "ä: #", "12:30"])
def test_texts_that_look_like_other_things_stay_texts(
    example_log: ExampleLog, tmp_path: Path, name: str
) -> None:
    example_log.trial("a", changes={"teacher.labels": {"circle": name}})
    teacher = read_study(exported(example_log, tmp_path)[0]).base.teacher
    assert teacher is not None
    assert teacher.labels == {"circle": name}


def test_settings_of_another_version_are_refused_with_the_reason(example_log: ExampleLog) -> None:
    example_log.trial("a", config='{"data": {"dataset": "shapes"}, "gone": 1}')
    log = read_log(example_log.storage)
    with pytest.raises(
        ConfigError,
        match=r"a: this version cannot read its settings: trial\.gone: no such setting",
    ):
        best_study_yaml(log, "example", best_trial(log, "example"), "AP")
