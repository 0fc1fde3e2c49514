"""What TensorBoard, MLflow and Weights & Biases show, read back from their own files."""

import importlib.util
import json
import struct
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from kdr.config.study import Study, study_from
from kdr.errors import ConfigError, PackageError
from kdr.results.flat_settings import canonical, flat_settings
from kdr.results.reader import Log, TrialState, read_log
from kdr.run.loggers import check_loggers, open_loggers
from kdr.run.observer import TrialUpdate
from kdr.run.shown_trials import ShownTrials
from kdr.run.study_run import run_study
from kdr.run.trial_identity import trial_maker
from kdr.run.tune_protocols import LoggedRun, RunLogger, TuneTrial
from kdr.storage.layout import Storage
from kdr.training.findings import Finding
from tests.run.tune_stand_ins import launched, report_of

TRAINING = {"batch_size": 8, "optimizer": "adamw", "lr": 1e-3, "schedule": "constant"}
MOBILENET = {"backbone": "mobilenet_v3_small", "fpn_channels": 32}
STUDY: dict[str, Any] = {
    "study": "shown",
    "trial": {
        "data": {
            "dataset": "shapes",
            "image_size_px": 64,
            "num_train": 24,
            "num_val": 4,
            "search_split": 8,
        },
        "teacher": {**MOBILENET, "training": {**TRAINING, "epochs": 1}},
        "student": MOBILENET,
        "distill": {"kdr": {"review_links": ["P4->P3"]}},
        "training": {**TRAINING, "epochs": 3, "eval_every_epochs": 2},
    },
    # the last one fails
    "search": {"sampler": "grid", "parameters": {"training.lr": {"choice": [1e-3, 1e-4, 1e30]}}},
    "resources": {"max_concurrent": 1},
}
INSTALLED = [
    name
    for name in ("tensorboard", "mlflow", "wandb")
    if name == "tensorboard" or importlib.util.find_spec(name)
]


class Watcher:
    """Records phases."""

    def __init__(self) -> None:
        self.phases: list[str] = []

    def phase(self, text: str) -> None:
        self.phases.append(text)

    def finding(self, finding: Finding) -> None:
        """Not recorded."""

    def plan(self, num_trials: int | None, num_done: int, num_concurrent: int) -> None:
        """Not recorded."""

    def update(self, progress: TrialUpdate) -> None:
        """Not recorded."""


def study_with(**changes: Any) -> Study:
    return study_from({**STUDY, **changes}, folder=Path("/"))


def test_an_unknown_logger_is_refused_with_the_list() -> None:
    with pytest.raises(ConfigError, match=r"loggers.*'tensorboard', 'wandb' or 'mlflow'"):
        study_with(loggers=["tensorbord"])


def test_loggers_are_in_no_trials_key(tmp_path: Path) -> None:
    keys = {
        trial_maker(study, Storage.at(tmp_path))(study.base).key
        for study in (study_with(), study_with(loggers=["tensorboard", "mlflow"]))
    }
    assert len(keys) == 1


def test_all_missing_packages_are_named_with_how_to_install_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(PackageError) as caught:
        check_loggers(["wandb", "mlflow"])
    assert str(caught.value).splitlines() == [
        (
            "loggers: wandb needs the package wandb, which is not installed. Leave wandb out, or "
            "run: pip install wandb"
        ),
        (
            "loggers: mlflow needs the package mlflow, which is not installed. Leave mlflow out, "
            "or run: pip install mlflow-skinny"
        ),
    ]


def test_a_logger_that_cannot_be_set_up_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)  # importing it raises
    with pytest.raises(
        PackageError,
        match=("loggers: tensorboard cannot be set up: import of tensorboardX"),
    ):
        open_loggers(["tensorboard"], "shown", Storage.at(tmp_path))


class BreaksAtEpoch2:
    """A logger whose disk is full after one epoch."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def setup(self) -> None:
        """Does nothing."""

    def log_trial_start(self, trial: LoggedRun) -> None:
        """Does nothing."""

    def log_trial_result(self, iteration: int, trial: LoggedRun, result: dict[str, float]) -> None:
        if result["training_iteration"] == 2:
            raise OSError("disk full")
        self.seen.append(int(result["training_iteration"]))

    def log_trial_end(self, trial: LoggedRun, failed: bool = False) -> None:
        """Does nothing."""

    def on_experiment_end(self, trials: Sequence[TuneTrial]) -> None:
        """Does nothing."""


def test_a_logger_that_raises_is_dropped_and_the_others_continue(
    tmp_path: Path,
) -> None:
    storage, watcher = Storage.at(tmp_path), Watcher()
    study = study_with()
    trial = launched(trial_maker(study, storage)(study.base))
    broken = BreaksAtEpoch2()
    loggers: dict[str, RunLogger] = {
        "broken": broken,
        **open_loggers(["tensorboard"], "shown", storage),
    }
    callback = ShownTrials(loggers, storage, "shown", watcher, names={})
    for epoch in (1, 2, 3):
        callback.on_trial_result(
            epoch, [], trial, report_of(epoch, epochs=[{"epoch": epoch, "lr": 0.1}]).as_result()
        )
    callback.on_experiment_end([])
    assert broken.seen == [1]
    assert watcher.phases == ["Dropped the logger broken, which failed with OSError: disk full"]
    [folder] = (storage.loggers("shown")).iterdir()
    assert [step for step, tag, _ in scalars(folder) if tag == "ray/tune/lr"] == [1, 2, 3]


def test_another_attempt_at_a_trial_is_another_run(tmp_path: Path) -> None:
    storage, study = Storage.at(tmp_path), study_with()
    known = trial_maker(study, storage)(study.base)
    loggers = open_loggers(["tensorboard"], "shown", storage)
    callback = ShownTrials(
        loggers,
        storage,
        "shown",
        Watcher(),
        names={known.key: "no KD and half, seed 3"},
    )
    for attempt in (1, 2):
        report = report_of(1, attempt=attempt, epochs=[{"epoch": 1, "lr": 0.1}])
        callback.on_trial_result(1, [], launched(known), report.as_result())
    callback.on_experiment_end([])
    label = f"no-KD-and-half-seed-3-{known.key}"
    assert sorted(path.name for path in storage.loggers("shown").iterdir()) == [
        label,
        f"{label}-attempt-2",
    ]


@pytest.fixture(scope="module")
def shown(ray_here: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Storage, Watcher]:
    """Runs a study with every installed logger, one trial after another in one actor."""
    storage, watcher = Storage.at(tmp_path_factory.mktemp("shown")), Watcher()
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the libraries' own
        patch.setenv("WANDB_MODE", "offline")
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.chdir(Path(str(storage.root)))
        outcome = run_study(study_with(loggers=INSTALLED), storage=storage, observer=watcher)
    assert (outcome.num_run, outcome.num_failed) == (3, 1)
    return storage, watcher


def scalars(folder: Path) -> Iterator[tuple[int, str, float]]:
    """Yields (step, tag, value) from the event files of one run. Each record is a length, a
    checksum, an Event and a checksum."""
    from tensorboardX.proto.event_pb2 import Event

    for path in sorted(folder.glob("events.out.tfevents.*")):
        content = path.read_bytes()
        while content:
            length = struct.unpack("<Q", content[:8])[0]
            event = Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    yield event.step, value.tag, value.simple_value


def runs_of(log: Log) -> dict[str, TrialState]:
    """Returns the states of all trials by their names in the loggers."""
    states = log.states_of("shown")
    students = [state for state in states.values() if state.role == "student"]
    names = {
        f"trial-{number:04}-{state.key}": state for number, state in enumerate(students, start=1)
    }
    [teacher] = [state for state in log.states().values() if state.role == "teacher"]
    return {**names, f"teacher-{teacher.key}": teacher}


def expected(log: Log, state: TrialState) -> dict[tuple[int, str], float]:
    """Returns (epoch, name) -> value of everything that loggers show of a trial, from the log."""
    found: dict[tuple[int, str], float] = {}
    for row in log.epochs_of(state.key).to_pylist():
        numbers = {
            **{
                name: row[name]
                for name in ("AP", "AP50", "AP75", "APs", "APm", "APl", "lr", "images_per_s")
            }
        }
        numbers |= {f"losses/{name}": value for name, value in row["losses"]}
        numbers |= {f"weighted_losses/{name}": value for name, value in row["weighted_losses"]}
        found |= {
            (row["epoch"], name): value for name, value in numbers.items() if value is not None
        }
    return found


@pytest.mark.ray
@pytest.mark.slow
def test_tensorboard_shows_every_epoch_of_each_trial_under_its_name(
    shown: tuple[Storage, Watcher],
) -> None:
    storage, watcher = shown
    log = read_log(storage)
    assert not any("Dropped the logger" in phase for phase in watcher.phases)
    folders = {
        path.name: path for path in storage.loggers("shown").iterdir() if path.name != "wandb"
    }
    assert set(folders) == set(runs_of(log))
    for name, state in runs_of(log).items():
        read = {
            (step, tag.removeprefix("ray/tune/")): value
            for step, tag, value in scalars(folders[name])
            if tag not in ("ray/tune/epoch",) and "hparam" not in tag
        }
        assert read == pytest.approx(expected(log, state), rel=1e-6)
    first = expected(log, next(iter(runs_of(log).values())))
    assert {epoch for epoch, name in first if name == "losses/kdr.foreground"} == {1, 2, 3}
    assert {epoch for epoch, name in first if name == "AP"} == {2, 3}


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.skipif("mlflow" not in INSTALLED, reason="mlflow is not installed")
def test_mlflow_has_one_run_per_trial_with_its_settings(shown: tuple[Storage, Watcher]) -> None:
    from mlflow import MlflowClient

    storage, _ = shown
    log = read_log(storage)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        client = MlflowClient(f"sqlite:///{storage.root}/loggers/mlflow.db")
        experiment = client.get_experiment_by_name("shown")
        runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == set(runs_of(log))
    for name, state in runs_of(log).items():
        run = runs[name]
        assert run.info.status == ("FAILED" if state.state == "failed" else "FINISHED")
        read = {
            (point.step, metric): point.value
            for metric in run.data.metrics
            if metric not in ("epoch", "training_iteration")
            for point in client.get_metric_history(run.info.run_id, metric)
        }
        assert read == pytest.approx(expected(log, state))
        settings = {
            path: str(canonical(value)) for path, value in flat_settings(state.config).items()
        }
        assert run.data.params == {**settings, "key": state.key, "attempt": "1"}
    assert not (storage.root / "mlruns").exists()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.skipif("wandb" not in INSTALLED, reason="wandb is not installed")
def test_wandb_has_one_run_per_trial_with_its_settings(shown: tuple[Storage, Watcher]) -> None:
    storage, _ = shown
    log = read_log(storage)
    runs = dict(offline_runs(storage.loggers("shown") / "wandb"))
    assert set(runs) == set(runs_of(log))
    for name, state in runs_of(log).items():
        config, history = runs[name]
        assert config["training.lr"] == flat_settings(state.config)["training.lr"]
        assert config["key"] == state.key
        read = {
            (row["_step"], key): value
            for row in history
            for key, value in row.items()
            if not key.startswith("_") and key not in ("epoch", "training_iteration")
        }
        assert read == pytest.approx(expected(log, state))


def offline_runs(
    folder: Path,
) -> Iterator[tuple[str, tuple[dict[str, Any], list[dict[str, Any]]]]]:
    """Yields name, settings and history of the runs that wandb wrote for a later `wandb sync`."""
    from wandb.proto.wandb_internal_pb2 import Record

    for path in folder.glob("offline-run-*/*.wandb"):
        name = ""
        config: dict[str, Any] = {}
        history: list[dict[str, Any]] = []
        for content in leveldb_records(path.read_bytes()):
            record = Record.FromString(content)
            if record.HasField("run"):
                name = record.run.display_name
                config |= {
                    item.key: json.loads(item.value_json) for item in record.run.config.update
                }
            if record.HasField("history"):
                items = {
                    "/".join(item.nested_key) or item.key: json.loads(item.value_json)
                    for item in record.history.item
                }
                history.append({**items, "_step": record.history.step.num})
        yield name, (config, history)


def leveldb_records(content: bytes) -> Iterator[bytes]:
    """Yields the records of a log in LevelDB's format: blocks of 32 KiB, in which each part of a
    record follows a header of 7 bytes."""
    whole, at = b"", 7  # after the file's own header
    while at + 7 <= len(content):
        if (left := 2**15 - at % 2**15) < 7:
            at += left
            continue
        length, kind = struct.unpack("<HB", content[at + 4 : at + 7])
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # the whole of a record, or the last of its parts
            yield whole
            whole = b""
