"""Fixtures and settings for all tests."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

import kdr
from kdr.config.study import study_from, study_yaml
from kdr.results.schema import ArmRow, EpochRow, Event, TrialEvent
from kdr.results.writer import LogWriter
from kdr.storage.files import StoredPath
from kdr.storage.layout import Storage
from kdr.storage.local_path import LocalPath
from tests.faults.invariants import toll

# One thread, in the tests and in the processes they start: on tensors this small, threads spend
# more time waiting for each other than computing.
os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("kdr", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("kdr")

# A shell starts background jobs with SIGINT ignored. The runs that the tests interrupt would
# inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Sends all modules that start Ray to one process, since two Rays would starve each other."""
    from xdist.scheduler import LoadScopeScheduling

    tests = Path(__file__).parent
    with_ray = {
        str(path.relative_to(tests.parent))
        for path in tests.rglob("test_*.py")
        if "mark.ray" in path.read_text()
    }

    class RayInOneProcess(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
        def _split_scope(self, nodeid: str) -> str:
            return "ray" if nodeid.partition("::")[0] in with_ray else nodeid

    return RayInOneProcess(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    if call.when == "call":
        item.user_properties.append(("toll", dict(toll)))
    toll.clear()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints which faults studies survived (`record_property("fault", ...)`), one test a line."""
    reports = [
        report
        for outcome in ("passed", "failed")
        for report in terminalreporter.stats.get(outcome, ())
    ]
    rows = [(dict(report.user_properties), report) for report in reports]
    rows = [(properties, report) for properties, report in rows if "fault" in properties]
    if rows:
        columns = ("checks", "lost", "doubled", "left behind")
        terminalreporter.section(
            "faults: nothing lost, nothing doubled, attempts numbered, nothing left behind"
        )
        terminalreporter.line("  ".join(["          times", *columns, "fault"]))
        for properties, report in rows:
            counts = [f"{properties['toll'].get(name, 0):>{len(name)}}" for name in columns]
            held = "held" if report.passed else "NOT HELD"
            terminalreporter.line(
                "  ".join(
                    [f"{held:8}  {properties.get('times', 1):>5}", *counts, properties["fault"]]
                )
            )


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    session.config.stash[_EXIT_STATUS] = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    # Leaves without the interpreter's teardown: native threads of the libraries under test have
    # crashed it after all tests had passed.
    if _EXIT_STATUS in config.stash:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(config.stash[_EXIT_STATUS])


_EXIT_STATUS = pytest.StashKey[int]()


@dataclass
class ExampleLog:
    """A trial log on disk, written by `LogWriter`: a search over KDR's weight and review links."""

    storage: Storage
    study: str = "example"
    sampler: str = "tpe"
    time: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    content: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.content = {
            "study": self.study,
            "trial": {
                "data": {"dataset": "shapes", "search_split": 64},
                "teacher": {
                    "detector": "retinanet",
                    "backbone": "resnet18",
                    "training": {"epochs": 2},
                },
                "student": {
                    "detector": "retinanet",
                    "backbone": "mobilenet_v3_small",
                    "fpn_channels": 64,
                },
                "distill": {"kdr": {"weight": 3.0}},
                "training": {"epochs": 4, "batch_size": 16},
            },
            "search": {
                "trials": 8,
                "sampler": self.sampler,
                "parameters": {
                    "distill.kdr.weight": {"choice": [1.0, 2.0, 5.0]},
                    "distill.kdr.review_links": {"subset": ["P4->P3", "P5->P4"]},
                },
            },
        }

    def tick(self) -> datetime:
        """Advances the log's clock by a second and returns it."""
        self.time += timedelta(seconds=1)
        return self.time

    def trial(
        self,
        key: str,
        *,
        parameters: Mapping[str, Any] | None = None,
        changes: Mapping[str, Any] | None = None,
        event: Event = "completed",
        epoch: int = 4,
        AP: float | None = 0.2,
        arm: str | None = None,
        seconds_per_epoch: float = 10.0,
        levels: Mapping[str, str] | None = None,
        **columns: Any,
    ) -> None:
        """Writes one trial from its arm to its last event, with a row per epoch.

        Args:
            key: of the trial.
            parameters: what the search drew, by path.
            changes: further settings, by path.
            event: the last one.
            epoch: the last finished one.
            AP: at the last epoch; rises linearly from 0.
            arm: its name; by default the key.
            seconds_per_epoch: of training, without evaluation.
            levels: make it an arm of an ablation.
            columns: of every event.
        """
        study = study_from(self.content, folder=Path("/"))
        parameters = {"distill.kdr.weight": 2.0} if parameters is None else parameters
        config = study.trial_with({**parameters, **(changes or {})})
        drawn = json.dumps(parameters)
        with LogWriter(self.storage, self.study) as writer:
            writer.arms(
                [
                    ArmRow(
                        study=self.study,
                        key=key,
                        seed=config.seed,
                        arm=arm or key,
                        parameters=drawn,
                        study_config=json.dumps(study_yaml(study)),
                        time=self.tick(),
                        levels=None if levels is None else json.dumps(levels),
                        is_reference=None if levels is None else arm == "baseline",
                    )
                ]
            )
            common: dict[str, Any] = {
                "study": self.study,
                "key": key,
                "seed": config.seed,
                "config": config.model_dump_json(),
                "parameters": drawn,
                **columns,
            }
            writer.event(TrialEvent(**common, event="started", time=self.tick()))
            for number in range(1, epoch + 1):
                metric = AP if AP is None or epoch == 0 else AP * number / epoch
                writer.epoch(
                    EpochRow(
                        study=self.study,
                        key=key,
                        attempt=columns.get("attempt", 1),
                        epoch=number,
                        step=number * 10,
                        AP=metric,
                        losses={"classification": 1.0 / number, "kdr": 2.0},
                        seconds=seconds_per_epoch,
                        eval_seconds=1.0,
                        time=self.tick(),
                    )
                )
            if event not in ("started", "resumed"):
                writer.event(
                    TrialEvent(
                        **common,
                        AP=AP,
                        epoch=epoch,
                        seconds=epoch * (seconds_per_epoch + 1),
                        event=event,
                        time=self.tick(),
                    )
                )


@dataclass
class AblationLog:
    """The log of an ablation, written by `LogWriter` arm by arm, with the AP of each seed."""

    storage: Storage
    study: str = "ablate"
    ablation: dict[str, Any] = field(
        default_factory=lambda: {"seeds": [0, 1, 2, 3, 4], "margin": 0.005}
    )
    workers: int = 1
    prefix: str = ""
    """Start of every key, so that two studies can have different trials."""
    time: datetime = datetime(2026, 1, 1, tzinfo=UTC)

    def content(self) -> dict[str, Any]:
        """Returns the study as plain values, as in its file."""
        trial = ExampleLog(self.storage).content["trial"] | {"data": {"dataset": "shapes"}}
        ablation = {
            "design": "arms",
            "arms": {"any": {"distill.kdr.weight": 9.0}},
            **self.ablation,
        }
        if "factors" in ablation:
            del ablation["arms"]
        return {
            "study": self.study,
            "trial": trial,
            "ablation": ablation,
            "resources": {"workers": self.workers},
        }

    def arm(
        self,
        name: str,
        APs: Mapping[int, float | None] | Sequence[float | None],
        *,
        levels: Mapping[str, str] | None = None,
        changes: Mapping[str, Any] | None = None,
        keys: str | None = None,
        event: Event = "completed",
        epoch_columns: Mapping[str, Any] | None = None,
        batch: str = "batch",
        **columns: Any,
    ) -> None:
        """Writes the trials of one arm.

        Args:
            name: of the arm; `baseline` and `nothing` are references.
            APs: at the last epoch, by seed, or in a list for the seeds 0, 1, ...; None for a trial
                that has not started.
            levels: of each factor.
            changes: settings, by path.
            keys: name of another arm with the same trials, which are not written again.
            event: the last one of each trial.
            epoch_columns: of each epoch's row.
            batch: start of the hashes of the first batches, which end with seed and epoch.
            columns: of the last event.
        """
        by_seed = APs if isinstance(APs, Mapping) else dict(enumerate(APs))
        study = study_from(self.content(), folder=Path("/"))
        content, is_reference = json.dumps(study_yaml(study)), name in ("baseline", "nothing")
        arms = [
            ArmRow(
                study=self.study,
                key=f"{self.prefix}{keys or name}-{seed}",
                arm=name,
                seed=seed,
                study_config=content,
                levels=json.dumps(levels or {}),
                is_reference=is_reference,
                time=self.tick(),
            )
            for seed in by_seed
        ]
        rows = {arm.seed: arm for arm in arms}
        with LogWriter(self.storage, self.study) as writer:
            writer.arms(arms)
            for seed, AP in by_seed.items():
                if AP is None or keys is not None:
                    continue
                config = study.trial_with({**(changes or {}), "seed": seed})
                epochs = config.training.epochs
                of_trial: dict[str, Any] = {
                    "study": self.study,
                    "key": rows[seed].key,
                    "time": rows[seed].time,
                }
                for epoch in range(1, epochs + 1):
                    row: dict[str, Any] = {
                        "AP": AP * epoch / epochs,
                        "AP50": AP + 0.2,
                        "seconds": 10.0 + seed,
                        "images_seen": epoch * 512,
                        "first_batch_hash": f"{batch}-{seed}-{epoch}",
                        **(epoch_columns or {}),
                    }
                    writer.epoch(
                        EpochRow(**of_trial, attempt=1, epoch=epoch, step=epoch * 32, **row)
                    )
                ended: dict[str, Any] = {
                    "epoch": epochs,
                    "AP": AP,
                    "AP50": AP + 0.2,
                    "commit": "c1",
                    "data_id": "d1",
                    "seed": seed,
                    **columns,
                }
                writer.event(
                    TrialEvent(**of_trial, event=event, config=config.model_dump_json(), **ended)
                )

    def tick(self) -> datetime:
        """Advances the log's clock by a second and returns it."""
        self.time += timedelta(seconds=1)
        return self.time


def local(path: StoredPath) -> LocalPath:
    """Returns a path of a storage on this machine, with the methods of `pathlib.Path`."""
    assert isinstance(path, LocalPath)
    return path


PythonProcess = Callable[..., subprocess.Popen[bytes]]
"""Starts a Python process: its code, then its arguments."""


def start_python(code: str, *arguments: object) -> subprocess.Popen[bytes]:
    """Starts a Python process that runs `code` with `arguments` in `sys.argv[1:]`."""
    root = Path(kdr.__file__).parents[1]
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(root)},
    )


@pytest.fixture
def python_process() -> PythonProcess:
    """Starts real Python processes, to be killed or to write at the same time."""
    return start_python


@pytest.fixture
def room_for_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes training run out of memory when a pass has more than two images."""
    import torch

    from kdr.training.training_state import TrainingState

    losses = TrainingState.losses

    def starved(self: Any, one: Any, *given: Any, **more: Any) -> Any:
        if len(one.batch) > 2:
            torch.empty(1 << 60, dtype=torch.uint8)  # the allocator's own error
        return losses(self, one, *given, **more)

    monkeypatch.setattr(TrainingState, "losses", starved)


@pytest.fixture
def example_log(tmp_path: Path) -> ExampleLog:
    """An empty log in its own folder, to be filled trial by trial."""
    return ExampleLog(Storage.at(tmp_path / "runs"))


def write_mmdetection_file(path: Path, categories: tuple[str, ...] | None) -> str:
    """Writes RetinaNet weights under mmdetection's layer names, with or without class names."""
    import torch

    from kdr.config.detector import DetectorConfig
    from kdr.detectors.build import build_detector

    config = DetectorConfig(backbone="resnet18", fpn_channels=32, p6_from="C5")
    state = build_detector(config, ("a",) * 6, seed=4).model.state_dict()
    parts = {
        "backbone.body.": "backbone.",
        "backbone.fpn.extra_blocks.p6.": "neck.fpn_convs.3.conv.",
        "backbone.fpn.extra_blocks.p7.": "neck.fpn_convs.4.conv.",
        **{
            f"backbone.fpn.inner_blocks.{level}.0.": f"neck.lateral_convs.{level}.conv."
            for level in range(3)
        },
        **{
            f"backbone.fpn.layer_blocks.{level}.0.": f"neck.fpn_convs.{level}.conv."
            for level in range(3)
        },
        **{
            f"head.classification_head.conv.{n}.0.": f"bbox_head.cls_convs.{n}.conv."
            for n in range(4)
        },
        **{f"head.regression_head.conv.{n}.0.": f"bbox_head.reg_convs.{n}.conv." for n in range(4)},
        "head.classification_head.cls_logits.": "bbox_head.retina_cls.",
        "head.regression_head.bbox_reg.": "bbox_head.retina_reg.",
    }
    for ours, theirs in parts.items():
        state = {
            theirs + key.removeprefix(ours) if key.startswith(ours) else key: value
            for key, value in state.items()
        }
    torch.save(
        {"state_dict": state, "meta": {} if categories is None else {"CLASSES": categories}}, path
    )
    return str(path)


@pytest.fixture
def mmdetection_file(tmp_path: Path) -> Callable[[tuple[str, ...] | None], str]:
    """Writes `teacher.pth`: a RetinaNet-R18 of mmdetection with six classes, named or unnamed."""
    return lambda categories: write_mmdetection_file(tmp_path / "teacher.pth", categories)


@pytest.fixture
def ablation_log(tmp_path: Path) -> AblationLog:
    """The empty log of an ablation with five seeds."""
    return AblationLog(Storage.at(tmp_path / "runs"))
