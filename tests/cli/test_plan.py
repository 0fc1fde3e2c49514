"""`plan` shows a study before anything runs, and needs little for it."""

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

import kdr
from kdr.cli import plan
from kdr.errors import ConfigError, DataError
from tests.cli.conftest import Invoke, Orchestrate, Write

STUDIES = sorted((Path(kdr.__file__).parents[1] / "search_spaces").glob("*.yaml"))
HEAVY = ("torch", "torchvision", "ray", "optuna", "duckdb", "scipy", "numpy")

SMALL: dict[str, Any] = {
    "study": "small",
    "trial": {
        "data": {
            "dataset": "shapes",
            "image_size_px": 64,
            "num_train": 12,
            "num_val": 4,
            "search_split": 4,
        },
        "teacher": {"backbone": "resnet18", "training": {"epochs": 2}},
        "student": {"backbone": "mobilenet_v3_small"},
        "distill": {"kdr": {}},
        "training": {"epochs": 3, "batch_size": 8},
    },
    "search": {
        "trials": 5,
        "parameters": {
            "distill.kdr.weight": {"float": [0.1, 50], "log": True},
            "distill.kdr.review_links": {"subset": ["P4->P3", "P5->P4"], "at_least": 1},
            "distill.kdr.attention": {
                "choice": ["none", "both"],
                "when": {"distill.kdr.review_links": "not empty"},
            },
        },
        "enqueue": [{"distill.kdr.review_links": ["P4->P3"]}],
    },
}
COCO = {
    "dataset": "coco",
    "train_images": "nowhere/train",
    "train_annotations": "nowhere/train.json",
    "val_images": "nowhere/val",
    "val_annotations": "nowhere/val.json",
    "search_split": 0.1,
}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes the small study, with some parts of its trial replaced."""

    def to_disk(**trial: Any) -> Path:
        path = tmp_path / "study.yaml"
        path.write_text(
            yaml.safe_dump({**SMALL, "trial": {**SMALL["trial"], **trial}}, sort_keys=False)
        )
        return path

    return to_disk


def facts(text: str) -> dict[str, str]:
    """Returns the lines above the first table, by their first column."""
    lines = [line for line in text.split("\n\n")[0].splitlines() if line]
    return dict(re.split(r" {2,}", line, maxsplit=1) for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("study", STUDIES, ids=lambda path: path.stem)
def test_every_shipped_study_is_planned_without_heavy_packages(study: Path, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom kdr.cli.app import main\ntry:\n    main()\nexcept SystemExit as end:\n"
        f"    print([name for name in {HEAVY} if name in sys.modules], end.code, file=sys.stderr)\n"
    )
    command = [sys.executable, "-c", code, "plan", str(study), "--storage", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    # the smallest effect that an ablation can decide is computed with numpy
    is_ablation = "ablation" in yaml.safe_load(study.read_text())
    assert result.stderr == ("['numpy'] 0\n" if is_ablation else "[] 0\n")
    assert facts(result.stdout)["study"] == yaml.safe_load(study.read_text())["study"]
    assert "warning" not in result.stdout
    assert not list(tmp_path.iterdir())


def test_trials_teacher_and_search_are_shown(invoke: Invoke, write: Write, tmp_path: Path) -> None:
    text = invoke(plan.command, write(), "--storage", tmp_path / "runs").stdout
    assert facts(text) == {
        "study": "small",
        "data": (
            "shapes: 12 training and 4 validation images, evaluated on 4 of the training images"
        ),
        "student": "retinanet mobilenet_v3_small, 3 epochs",
        "methods": "kdr",
        "teacher": "retinanet resnet18, trained first",
        "searches": "AP with tpe",
        "early stopping": "none",
        "trials": "5",
        "known already": "0 of 1",
        "log": str(tmp_path / "runs" / "log" / "v1"),
    }


ABLATION: dict[str, Any] = {
    "factors": {
        "review": {"off": {"distill.kdr.review_links": []}},
        "attention": {"off": {"distill.kdr.attention": "none"}},
    },
    "seeds": [5, 6, 7],
}


@pytest.fixture
def write_ablation(tmp_path: Path) -> Write:
    """Writes the small study as an ablation, with some of its settings replaced."""

    def to_disk(**ablation: Any) -> Path:
        path = tmp_path / "ablation.yaml"
        trial = {**SMALL["trial"], "data": {**SMALL["trial"]["data"], "search_split": 0}}
        path.write_text(
            yaml.safe_dump(
                {"study": "parts", "trial": trial, "ablation": {**ABLATION, **ablation}},
                sort_keys=False,
            )
        )
        return path

    return to_disk


def test_the_arms_of_an_ablation_are_shown(
    invoke: Invoke, write_ablation: Write, tmp_path: Path
) -> None:
    text = invoke(
        plan.command, write_ablation(design="factorial"), "--storage", tmp_path / "runs"
    ).stdout
    found = facts(text)
    assert (found["compares"], found["seeds"]) == (
        "AP of 4 arms (factorial) with 'baseline'",
        "3: 5, 6, 7",
    )
    assert (found["trials"], found["known already"]) == ("9", "0 of 9")
    lines = [
        [cell.strip() for cell in line.split("  ") if cell.strip()]
        for line in text.split("\n\n")[1].splitlines()
    ]
    assert lines == [
        ["arm", "known", "changes"],
        ["baseline", "0", "nothing"],
        ["attention=off", "0", "distill.kdr.attention = none"],
        ["review=off", "0", "distill.kdr.review_links = []"],
        [
            "review=off, attention=off",
            "0",
            (
                "distill.kdr.review_links = [], distill.kdr.attention = none (the same trial as "
                "'review=off')"
            ),
        ],
    ]


def test_left_out_arms_are_named(invoke: Invoke, write_ablation: Write) -> None:
    leave_out = [{"review": "off", "attention": "off"}]
    found = facts(
        invoke(plan.command, write_ablation(design="factorial", leave_out=leave_out)).stdout
    )
    assert (found["left out"], found["trials"]) == ("review=off, attention=off", "9")


def log_values(
    path: Path, storage: Any, values: Mapping[str, Sequence[float]], **columns: Any
) -> None:
    """Logs an ablation's trials as completed; `values` has each arm's AP of the first seeds."""
    from kdr.config.study import read_study
    from kdr.plan.designs import arm_points
    from kdr.results.reader import read_log
    from kdr.results.schema import TrialEvent
    from kdr.results.writer import LogWriter
    from kdr.run.study_arms import note_arms
    from kdr.run.trial_identity import trial_maker

    study = read_study(path)
    make = trial_maker(study, storage)
    assert study.ablation is not None
    trials = [(arm, make(study.trial_with(point))) for arm, point in arm_points(study.ablation)]
    with LogWriter(storage, study.study) as log:
        note_arms(log, read_log(storage), study, trials)
        for arm, trial in trials:
            index = study.ablation.all_seeds.index(trial.config.seed)
            if index < len(values[arm.name]):
                done: dict[str, Any] = {
                    "event": "completed",
                    "config": trial.config.model_dump_json(),
                    "seed": trial.config.seed,
                }
                log.event(
                    TrialEvent(
                        study=study.study,
                        key=trial.key,
                        AP=values[arm.name][index],
                        **done,
                        **columns,
                    )
                )


def test_cost_and_smallest_effect_come_from_the_log(
    invoke: Invoke, write_ablation: Write, tmp_path: Path
) -> None:
    from kdr.storage.layout import Storage

    storage, path = Storage.at(tmp_path / "runs"), write_ablation()
    before = facts(invoke(plan.command, path, "--storage", storage.root).stdout)
    assert before["cost"].startswith(
        "unknown: the log has no completed trial of this shape. --probe estimates it"
    )
    assert (
        before["can decide"]
        == "a difference of 4.6 sd of the paired differences (80% power, 3 seeds, 2 comparisons): "
        "0.023 AP if sd is 0.005"
    )
    values = {"baseline": (0.20, 0.21), "review=off": (0.18, 0.21), "attention=off": (0.19, 0.20)}
    log_values(path, storage, values, seconds=90.0, num_gpus=4.0, device="GPU")
    after = facts(invoke(plan.command, path, "--storage", storage.root).stdout)
    assert after["known already"] == "6 of 9"
    assert (
        after["cost"]
        == "4 min for 3 trials one after the other, 0.3 GPU-hours: the mean of 6 logged trials of "
        "this shape on GPU"
    )
    # the differences are -0.02, 0 and -0.01, -0.01: pooled sd sqrt(0.0002 / 2) = 0.01
    assert (
        after["can decide"]
        == "a difference of 0.046 AP (80% power, 3 seeds, 2 comparisons, sd of differences 0.01 so "
        "far)"
    )
    rows = json.loads(invoke(plan.command, path, "--storage", storage.root, "--json").stdout)[
        "arms"
    ]
    assert [(row["name"], row["num_known"]) for row in rows] == [
        ("baseline", 2),
        ("review=off", 2),
        ("attention=off", 2),
    ]


def test_the_contrast_is_not_adjusted(invoke: Invoke, write_ablation: Write) -> None:
    found = facts(invoke(plan.command, write_ablation(contrast="review=off")).stdout)
    assert "3 seeds, 1 comparison)" in found["can decide"]


def test_seeds_of_the_search_that_chose_the_settings_are_warned_about(
    invoke: Invoke, write_ablation: Write, tmp_path: Path
) -> None:
    from kdr.config.study import study_from
    from kdr.results.schema import TrialEvent
    from kdr.results.writer import LogWriter
    from kdr.run.study_arms import note_arm
    from kdr.run.trial_identity import trial_maker
    from kdr.storage.layout import Storage

    storage = Storage.at(tmp_path / "runs")
    search = study_from(SMALL, folder=tmp_path)
    trial = trial_maker(search, storage)(search.trial_with({"seed": 6}))
    with LogWriter(storage, "small") as log:
        note_arm(log, search, trial, parameters={})
        completed = TrialEvent(
            study="small",
            key=trial.key,
            event="completed",
            config=trial.config.model_dump_json(),
            seed=6,
        )
        log.event(completed)
    text = invoke(plan.command, write_ablation(), "--storage", storage.root).stdout
    assert "warning: ablation.seeds: the search small chose such settings with seed 6" in text
    assert (
        "warning"
        not in invoke(plan.command, write_ablation(seeds=[7, 8]), "--storage", storage.root).stdout
    )


@pytest.mark.slow
def test_a_probe_estimates_the_cost_of_teacher_and_trials(
    invoke: Invoke, write_ablation: Write, tmp_path: Path
) -> None:
    text = invoke(plan.command, write_ablation(), "--storage", tmp_path / "runs", "--probe").stdout
    found = facts(text)["cost"]
    assert " for 9 trials one after the other in this process, " in found
    assert " of it for the teacher: " in found
    assert found.endswith(" s per evaluation of the baseline")
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["data"]


def test_the_parameters_are_a_table(invoke: Invoke, write: Write) -> None:
    lines = invoke(plan.command, write()).stdout.splitlines()
    begin = next(index for index, line in enumerate(lines) if line.startswith("parameter "))
    rows = [
        [cell.strip() for cell in line.split("  ") if cell.strip()]
        for line in lines[begin : begin + 4]
    ]
    assert rows == [
        ["parameter", "kind", "values", "drawn when"],
        ["distill.kdr.weight", "float log", "0.1 to 50"],
        ["distill.kdr.review_links", "subset", "P4->P3, P5->P4, at least 1"],
        ["distill.kdr.attention", "choice", "none, both", "distill.kdr.review_links not empty"],
    ]


def test_json_has_the_same_facts(invoke: Invoke, write: Write, tmp_path: Path) -> None:
    found = json.loads(invoke(plan.command, write(), "--storage", tmp_path, "--json").stdout)
    assert (found["study"], found["trials"], found["known already"]) == ("small", 5, "0 of 1")
    assert [row["path"] for row in found["parameters"]] == list(SMALL["search"]["parameters"])
    assert (found["warnings"], found["checked_data"]) == ([], [])
    assert found["data"].startswith("shapes: ")


def test_settings_can_be_overridden(invoke: Invoke, write: Write) -> None:
    overrides = [
        "--set",
        "search.trials=40",
        "--set",
        "training.epochs=7",
        "--set",
        "trial.student.detector=fcos",
    ]
    found = facts(invoke(plan.command, write(), *overrides).stdout)
    assert (found["trials"], found["student"]) == ("40", "fcos mobilenet_v3_small, 7 epochs")


def test_suspicious_settings_are_warned_about(invoke: Invoke, write: Write) -> None:
    lines = invoke(plan.command, write(), "--set", "training.batch_size=64").stdout.splitlines()
    warnings = [line for line in lines if line.startswith("warning: ")]
    assert len(warnings) == 1
    assert warnings[0].startswith(
        "warning: trial.training.batch_size: 64 is more than the 8 training images"
    )


def test_a_teacher_of_another_library_is_shown_and_its_settings_are_checked(
    invoke: Invoke, write: Write, tmp_path: Path
) -> None:
    teacher = {
        "backbone": "resnet101",
        "weights": str(tmp_path / "model.pkl"),
        "weights_layout": "detectron2",
    }
    text = invoke(plan.command, write(teacher=teacher), "--storage", tmp_path / "runs").stdout
    assert facts(text)["teacher"] == "retinanet resnet101, weights of detectron2"
    assert "cannot be counted here" in facts(text)["known already"]


def test_known_trials_and_teachers_are_counted(
    invoke: Invoke, write: Write, tmp_path: Path
) -> None:
    from kdr.config.study import read_study
    from kdr.results.schema import TrialEvent
    from kdr.results.writer import LogWriter
    from kdr.run.trial_identity import trial_maker
    from kdr.storage.layout import Storage

    path, storage = write(), Storage.at(tmp_path / "runs")
    study = read_study(path)
    make = trial_maker(study, storage)
    teacher = study.base.teacher_trial()
    assert teacher is not None
    with LogWriter(storage, "another") as log:
        for config in (study.trial_with(SMALL["search"]["enqueue"][0]), teacher):
            log.event(
                TrialEvent(
                    study="another",
                    key=make(config).key,
                    event="completed",
                    config=config.model_dump_json(),
                )
            )
    found = facts(invoke(plan.command, path, "--storage", storage.root).stdout)
    assert (found["known already"], found["teacher"]) == (
        "1 of 1",
        "retinanet resnet18, trained already",
    )


def test_a_full_check_of_the_data_generates_and_decodes_it(
    invoke: Invoke, write: Write, tmp_path: Path
) -> None:
    text = invoke(
        plan.command, write(), "--storage", tmp_path / "runs", "--check-data", "full"
    ).stdout
    assert "\ntraining: train.json: 8 images, " in text
    assert "\nevaluation: train.json: 4 images, " in text
    [image, *others] = sorted((tmp_path / "runs" / "data").rglob("train*/*.png")) or sorted(
        (tmp_path / "runs").rglob("*.jpg")
    )
    assert others
    image.write_bytes(image.read_bytes()[:60])
    with pytest.raises(DataError, match=image.name):
        invoke(plan.command, write(), "--storage", tmp_path / "runs", "--check-data", "full")


def test_a_plan_does_not_need_the_data(
    orchestrate: Orchestrate, write: Write, tmp_path: Path
) -> None:
    path = write(data=COCO)
    result = orchestrate("plan", path, "--storage", tmp_path / "runs")
    assert (result.returncode, result.stderr) == (0, "")
    known = facts(result.stdout)["known already"]
    assert known == "cannot be counted here: files are missing, see below"
    assert "\nMissing on this machine:\n" in result.stdout
    assert f"\ndata.train_annotations  {tmp_path}/nowhere/train.json\n" in result.stdout
    checked = orchestrate("plan", path, "--storage", tmp_path / "runs", "--check-data", "headers")
    assert checked.returncode == 2
    assert checked.stderr.startswith(
        f"{tmp_path}/nowhere/train.json: cannot read the annotation file"
    )
    assert "Traceback" not in checked.stderr


def test_every_problem_of_a_file_is_printed_at_once(orchestrate: Orchestrate, write: Write) -> None:
    path = write(
        training={"epochs": 0, "batch_size": 8, "learning_rate": 1e-3},
        student={"backbone": "mobilenet_v3_smal"},
        distill={"kdr": {"weight": -1}},
    )
    result = orchestrate("plan", path)
    assert (result.returncode, result.stdout) == (2, "")
    lines = result.stderr.splitlines()
    for setting in (
        "training.epochs",
        "training.learning_rate",
        "student.backbone",
        "distill.kdr.weight",
    ):
        assert len([line for line in lines if line.startswith(f"trial.{setting}: ")]) == 1, setting
    assert len(lines) == 4
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.epoch=3", r"trial\.training\.epoch: no such setting. Did you mean 'epochs'"),
        ("training.epochs", r"--set.*training\.epochs"),
        ("search.parameters.distill.kdr.weight.float=[5, 1]", r"search\.parameters"),
    ],
)
def test_an_invalid_override_is_an_error(
    invoke: Invoke, write: Write, override: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        invoke(plan.command, write(), "--set", override)


def test_a_missing_file_is_an_error(invoke: Invoke, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.yaml"):
        invoke(plan.command, tmp_path / "missing.yaml")
