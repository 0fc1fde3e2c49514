"""The Python API: its names and signatures are frozen, and it gives what the commands give."""

import inspect
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import kdr
from kdr.errors import ConfigError
from kdr.report.tables.formats import read_written

SIGNATURES = {
    "load_student": "(path: 'str | Path') -> 'Student'",
    "make_table": (
        "(log: 'TrialLog', study: 'str', *, metrics: 'Sequence[str]' = (), "
        "by: 'Sequence[str]' = (), pivot: 'tuple[str, str] | None' = None, "
        "compare: 'str | None' = None, allow_unequal: 'bool' = False) -> 'ResultTable'"
    ),
    "open_log": "(storage: 'str | Path' = 'runs') -> 'TrialLog'",
    "plan_study": "(study: 'Study', *, storage: 'str | Path' = 'runs') -> 'StudyPlan'",
    "read_study": "(path: str | pathlib.Path, overrides: collections.abc.Iterable[str] = ()) "
    "-> kdr.config.study.Study",
    "run_study": (
        "(study: 'Study', *, storage: 'str | Path' = 'runs', observer: 'Observer | None' = None, "
        "address: 'str | None' = None, rerun: 'bool' = False, preflight: 'bool' = True) "
        "-> 'Outcome'"
    ),
    "TrialLog.studies": "(self) -> 'tuple[str, ...]'",
    "TrialLog.trials": "(self, study: 'str | None' = None) -> 'pa.Table'",
    "TrialLog.epochs": "(self, study: 'str | None' = None) -> 'pa.Table'",
    "TrialLog.arms": "(self, study: 'str | None' = None) -> 'pa.Table'",
    "TrialLog.query": "(self, sql: 'str') -> 'pa.Table'",
    "ResultTable.text": "(self, format: 'TableFormat' = 'md') -> 'str'",
    "ResultTable.save": "(self, path: 'str | Path') -> 'None'",
}
CLASSES = {"KdrError", "Observer", "ResultTable", "Study", "TrialLog", "TrialUpdate"}
STUDY = {
    "study": "tiny",
    "trial": {
        "data": {"dataset": "shapes", "image_size_px": 64, "num_train": 16, "num_val": 6},
        "student": {"backbone": "mobilenet_v3_small", "fpn_channels": 32},
        "training": {"epochs": 1, "batch_size": 8, "optimizer": "adamw", "lr": 1e-3},
    },
}


def public(name: str) -> Any:
    """The object behind a dotted name of kdr."""
    found: Any = kdr
    for part in name.split("."):
        found = getattr(found, part)
    return found


@pytest.mark.parametrize("name", SIGNATURES)
def test_a_signature_is_frozen(name: str) -> None:
    assert str(inspect.signature(public(name))) == SIGNATURES[name]


def test_the_public_names_are_frozen_and_documented() -> None:
    assert {name.split(".")[0] for name in SIGNATURES} | CLASSES == set(kdr.__all__)
    assert set(kdr.__all__) <= set(dir(kdr))
    assert [name for name in (*kdr.__all__, *SIGNATURES) if not public(name).__doc__] == []


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"module 'kdr' has no attribute 'nothing'"):
        _ = kdr.nothing


def test_importing_it_and_reading_a_study_needs_neither_torch_nor_ray(
    tmp_path: Path, python_process: Callable[..., "subprocess.Popen[bytes]"]
) -> None:
    (tmp_path / "study.yaml").write_text(json.dumps(STUDY))
    code = (
        "import sys, kdr\n"
        "light = {'pydantic', 'pyarrow', 'numpy'}.isdisjoint(sys.modules)\n"
        "kdr.plan_study(kdr.read_study(sys.argv[1]), storage=sys.argv[2])\n"
        "sys.exit(not light or 'torch' in sys.modules or 'ray' in sys.modules)"
    )
    folder = tmp_path / "runs"
    assert python_process(code, tmp_path / "study.yaml", folder).wait() == 0
    assert not folder.exists()


def test_a_plan_counts_the_trials(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(json.dumps(STUDY))
    plan = kdr.plan_study(kdr.read_study(tmp_path / "study.yaml"), storage=tmp_path)
    assert (plan.num_trials, plan.num_known, plan.teacher) == (1, 0, None)


def test_a_study_without_its_data_has_a_plan_that_does_not_count_what_is_known(
    tmp_path: Path,
) -> None:
    coco = {
        "dataset": "coco",
        "train_images": "a",
        "train_annotations": "a.json",
        "val_images": "b",
        "val_annotations": "b.json",
    }
    content = {**STUDY, "trial": {**STUDY["trial"], "data": coco}}  # type: ignore[dict-item]
    (tmp_path / "study.yaml").write_text(json.dumps(content))
    plan = kdr.plan_study(kdr.read_study(tmp_path / "study.yaml"), storage=tmp_path)
    assert plan.num_known is None


def test_a_folder_without_a_log_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^storage: must hold a trial log, got .*runs"):
        kdr.open_log(tmp_path / "runs")


def test_the_log_is_read_as_arrow_tables(ablation_log: Any) -> None:
    ablation_log.arm("baseline", [0.30, 0.31, 0.29])
    ablation_log.arm("any", [0.32, 0.34, 0.31])
    log = kdr.open_log(ablation_log.storage.root)
    assert log.studies() == ("ablate",)
    trials, epochs, arms = log.trials("ablate"), log.epochs("ablate"), log.arms("ablate")
    assert isinstance(trials, pa.Table)
    assert len(trials) == len(arms) == 6
    assert set(epochs["key"].to_pylist()) == set(trials["key"].to_pylist())
    assert "distill.kdr.weight" in trials.column_names
    assert len(log.trials("another")) == len(log.epochs("another")) == len(log.arms("another")) == 0
    assert log.trials() == trials
    [row] = log.query("SELECT count(*) AS n FROM trials").to_pylist()
    assert row == {"n": 6}


@pytest.mark.parametrize("ending", ["md", "tex", "csv", "json", "html"])
def test_a_saved_table_is_one_that_verify_reads(
    ablation_log: Any, tmp_path: Path, ending: str
) -> None:
    ablation_log.arm("baseline", [0.30, 0.31, 0.29])
    ablation_log.arm("any", [0.32, 0.34, 0.31])
    table = kdr.make_table(kdr.open_log(ablation_log.storage.root), "ablate", metrics=["AP"])
    assert table.columns[0] == "arm"
    assert [row[0] for row in table.rows] == ["baseline", "any"]
    path = tmp_path / f"table.{ending}"
    table.save(path)
    written = read_written(path.read_text())
    assert written.source["study"] == "ablate"
    assert len(written.cells) == 1 + len(table.rows)


def test_a_table_shows_itself_and_refuses_unknown_endings_and_studies(
    ablation_log: Any, tmp_path: Path
) -> None:
    ablation_log.arm("baseline", [0.30, 0.31, 0.29])
    log = kdr.open_log(ablation_log.storage.root)
    table = kdr.make_table(log, "ablate")
    assert str(table) == table.text("md")
    assert "<table>" in table._repr_html_()
    with pytest.raises(ConfigError, match=r"^path: must end in \.md, .*, got .*\.xlsx"):
        table.save(tmp_path / "table.xlsx")
    with pytest.raises(
        ConfigError, match=r"^study: must be one of the log's \(ablate\), got 'other'"
    ):
        kdr.make_table(log, "other")


class Watching:
    """An observer that keeps what it receives."""

    def __init__(self) -> None:
        self.phases: list[str] = []
        self.updates: list[kdr.TrialUpdate] = []

    def phase(self, text: str) -> None:
        self.phases.append(text)

    def finding(self, finding: object) -> None:
        pass

    def plan(self, num_trials: int | None, num_done: int, num_concurrent: int) -> None:
        pass

    def update(self, progress: kdr.TrialUpdate) -> None:
        self.updates.append(progress)


@pytest.mark.ray
def test_a_study_runs_from_python_and_its_student_finds_objects(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    path, storage = tmp_path / "study.yaml", tmp_path / "runs"
    path.write_text(json.dumps(STUDY))
    study, observer = kdr.read_study(path, ["seed=3"]), Watching()
    outcome = kdr.run_study(study, storage=storage, observer=observer, preflight=False)
    assert (outcome.num_run, outcome.num_failed, outcome.interrupted) == (1, 0, False)
    assert observer.updates[-1].state == "completed"
    [trial] = kdr.open_log(storage).trials("tiny").to_pylist()
    assert (trial["state"], trial["seed"]) == ("completed", 3)
    student = kdr.load_student(storage / "trials" / trial["key"])
    [found] = student.predict([torch.zeros(3, 48, 64, dtype=torch.uint8)], min_score=0.0)
    assert found.boxes_xyxy.shape == (len(found.scores), 4)
    assert len(found.names) == len(found.labels)
    # known now: nothing runs, and the default observer says so on a plain stream
    assert kdr.run_study(study, storage=storage, preflight=False).num_run == 0
    assert "Opening the data" in capsys.readouterr().out
