"""Trials that run out of memory: in a process with a real limit, in the log, and in later
attempts."""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from kdr.config.overrides import changed
from kdr.config.study import Study, study_from
from kdr.config.trial import Trial
from kdr.data.loader import Batch
from kdr.errors import TrialFailure
from kdr.results.exclusion import exclude
from kdr.results.reader import Log, read_log
from kdr.results.writer import LogWriter
from kdr.run.attempt.logged_fit import LoggedTrial
from kdr.run.engine.engine import InlineEngine
from kdr.run.trial_identity import trial_maker
from kdr.storage.layout import Storage
from tests.faults.invariants import check_log

pytestmark = pytest.mark.slow

CONTENT: dict[str, Any] = {
    "study": "full",
    "trial": {
        "data": {"dataset": "shapes", "image_size_px": 64, "num_train": 16, "num_val": 4},
        "student": {"backbone": "mobilenet_v3_small", "fpn_channels": 32},
        "training": {
            "epochs": 3,
            "batch_size": 8,
            "optimizer": "adamw",
            "lr": 1e-4,
            "micro_batch": "auto",
        },
    },
}
BIG = {"data.image_size_px": 640, "data.num_train": 8, "data.num_val": 2, "training.epochs": 2}
"""Images so large that eight of them take more than a GiB; the interpreter's own memory does not
matter beside that."""

IN_A_PROCESS = """
import json, resource, sys
from pathlib import Path
import torch
from kdr.config.study import study_from
from kdr.results.writer import LogWriter
from kdr.run.engine.engine import InlineEngine
from kdr.run.attempt.logged_fit import LoggedTrial
from kdr.run.trial_identity import trial_maker
from kdr.storage.layout import Storage

def bytes_of(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    [line] = [line for line in lines if line.startswith(name)]
    return int(line.split()[1]) * 1024

folder, limit = sys.argv[1], int(sys.argv[4])
content, changes = json.loads(sys.argv[2]), json.loads(sys.argv[3])
torch.set_num_threads(1)
# once oneDNN found no memory for code, a process compiles nothing any more
torch.backends.mkldnn.set_flags(False)
study, storage = study_from(content, folder=Path("/")), Storage.at(folder)
if limit:
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
peaks = []
for micro_batch in changes:
    trial = trial_maker(study, storage)(study.trial_with({"training.micro_batch": micro_batch}))
    with LogWriter(storage, study.study) as log:
        for _ in LoggedTrial(trial, log, storage).epochs(InlineEngine(storage)):
            pass
    peaks.append(bytes_of("VmPeak"))
Path(folder, "peaks").write_text(json.dumps(peaks))
"""


@pytest.fixture
def study() -> Study:
    torch.set_num_threads(1)
    return study_from(CONTENT, folder=Path("/"))


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage.at(tmp_path / "runs")


def trial_of(study: Study, storage: Storage, **training: Any) -> Trial:
    changes = {f"training.{name}": value for name, value in training.items()}
    return trial_maker(study, storage)(study.trial_with(changes))


def events(log: Log, key: str) -> list[tuple[Any, ...]]:
    rows = sorted(
        (row for row in log.trials.to_pylist() if row["key"] == key), key=lambda row: row["time"]
    )
    return [(row["attempt"], row["event"], row["failure_kind"], row["reason"]) for row in rows]


def numbers(log: Log, key: str) -> list[dict[str, Any]]:
    columns = (
        "epoch",
        "step",
        "losses",
        "weighted_losses",
        "gradient_norms",
        "extras",
        "lr",
        "first_batch_hash",
        "AP",
        "AP50",
    )
    rows: list[dict[str, Any]] = log.epochs_of(key).select(columns).to_pylist()
    return rows


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="needs Linux's account of a process's memory"
)
def test_a_process_without_memory_for_the_batch_ends_with_the_bits_of_half_the_batch_at_a_time(
    tmp_path: Path,
    python_process: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    record_property("fault", "no memory for the batch: half of it in each pass")
    # glibc then returns freed tensors to the system; what it kept would count against the limit
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", str(2**16))

    def train(
        folder: Path, micro_batches: list[Any], limit: int = 0
    ) -> tuple[list[int], Storage, Study]:
        study = study_from(
            changed(CONTENT, {f"trial.{path}": value for path, value in BIG.items()}),
            folder=Path("/"),
        )
        content = changed(CONTENT, {f"trial.{path}": value for path, value in BIG.items()})
        process = python_process(
            IN_A_PROCESS, folder, json.dumps(content), json.dumps(micro_batches), limit
        )
        assert process.wait(300) == 0
        return json.loads((folder / "peaks").read_text()), Storage.at(folder), study

    [half, whole], expected, study = train(tmp_path / "free", [4, None])
    assert whole - half > 300 * 2**20, "too close to set a limit between them"
    [peak], storage, _ = train(tmp_path / "bound", ["auto"], (half + whole) // 2)
    assert peak <= (half + whole) // 2
    log = check_log(storage, "full")
    key = trial_of(study, storage, micro_batch="auto").key
    assert events(log, key) == [
        (1, "started", None, None),
        (
            1,
            "interrupted",
            "out_of_memory",
            "out of memory with 8 images at a time; continues with 4",
        ),
        (2, "started", None, None),
        (2, "completed", None, None),
    ]
    assert numbers(log, key) == numbers(
        read_log(expected), trial_of(study, expected, micro_batch=4).key
    )
    assert not storage.micro_batch(key).exists()


class Starved:
    """A machine without memory in one epoch, until an attempt uses few enough images at a time."""

    def __init__(self, storage: Storage, trial: Trial, *, epoch: int, down_to: int = 4) -> None:
        self._path = storage.micro_batch(trial.key)
        self._purpose = f"epoch {epoch}/"
        self._down_to = down_to

    def __call__(self, batches: Iterable[Batch], _count: int, purpose: str) -> Iterator[Batch]:
        fits = self._path.exists() and int(self._path.read_text()) <= self._down_to
        if purpose.startswith(self._purpose) and not fits:
            torch.empty(1 << 60, dtype=torch.uint8)  # the allocator's own error
        yield from batches


def run(
    trial: Trial, storage: Storage, engine: InlineEngine, num_epochs: int | None = None
) -> list[int]:
    epochs: list[int] = []
    with LogWriter(storage, "full") as log:
        for metrics in LoggedTrial(trial, log, storage).epochs(engine):
            epochs.append(metrics.epoch)
            if len(epochs) == num_epochs:
                break
    return epochs


def test_it_resumes_from_the_last_checkpoint_and_earlier_epochs_stay(
    study: Study, storage: Storage, tmp_path: Path
) -> None:
    trial = trial_of(study, storage)
    engine = InlineEngine(storage, track=Starved(storage, trial, epoch=2, down_to=2))
    assert run(trial, storage, engine) == [1, 1, 1, 2, 3]
    log = check_log(storage, "full")
    assert events(log, trial.key) == [
        (1, "started", None, None),
        (
            1,
            "interrupted",
            "out_of_memory",
            "out of memory with 8 images at a time; continues with 4",
        ),
        (2, "resumed", None, None),
        (
            2,
            "interrupted",
            "out_of_memory",
            "out of memory with 4 images at a time; continues with 2",
        ),
        (3, "resumed", None, None),
        (3, "completed", None, None),
    ]
    assert [dict(epoch["extras"])["micro_batch"] for epoch in numbers(log, trial.key)] == [8, 2, 2]
    undisturbed = Storage.at(tmp_path / "undisturbed")
    run(trial, undisturbed, InlineEngine(undisturbed))
    assert numbers(log, trial.key)[0] == numbers(read_log(undisturbed), trial.key)[0]
    states = [read_log(place).states()[trial.key] for place in (storage, undisturbed)]
    assert [
        state.last.seconds == pytest.approx(sum_of_seconds(read_log(place), trial.key))
        for state, place in zip(states, (storage, undisturbed), strict=True)
    ] == [True, True]


def sum_of_seconds(log: Log, key: str) -> float:
    rows = log.epochs_of(key).to_pylist()
    return float(sum(row["seconds"] + row["eval_seconds"] for row in rows))


def test_a_restart_uses_what_fitted_and_an_excluded_trial_starts_over_with_the_whole_batch(
    study: Study, storage: Storage
) -> None:
    trial = trial_of(study, storage)
    engine = InlineEngine(storage, track=Starved(storage, trial, epoch=1))
    assert run(trial, storage, engine, num_epochs=1) == [1]
    assert storage.micro_batch(trial.key).read_text() == "4"
    assert run(trial, storage, InlineEngine(storage), num_epochs=2) == [1, 2]
    assert [
        dict(epoch["extras"])["micro_batch"] for epoch in numbers(read_log(storage), trial.key)
    ] == [4, 4]
    exclude(storage, read_log(storage).states()[trial.key], "another machine")
    assert run(trial, storage, InlineEngine(storage)) == [1, 2, 3]
    log = check_log(storage, "full")
    assert [dict(epoch["extras"])["micro_batch"] for epoch in numbers(log, trial.key)] == [8, 8, 8]


@pytest.mark.parametrize(("micro_batch", "attempts"), [("auto", 4), (2, 1), (None, 1)])
def test_a_trial_fails_if_nothing_fits_or_the_settings_fix_the_number(
    study: Study, storage: Storage, micro_batch: Any, attempts: int
) -> None:
    trial = trial_of(study, storage, micro_batch=micro_batch)
    engine = InlineEngine(storage, track=Starved(storage, trial, epoch=1, down_to=0))
    with pytest.raises(TrialFailure, match="out_of_memory"):
        run(trial, storage, engine)
    log = check_log(storage, "full")
    [*before, last] = [event for event in events(log, trial.key) if event[1] != "started"]
    assert (last[0], last[1], last[2]) == (attempts, "failed", "out_of_memory")
    assert [event[3].rpartition("with ")[2] for event in before] == (
        ["4", "2", "1"] if micro_batch == "auto" else []
    )
    assert ("training.micro_batch lowers" in last[3]) == (micro_batch != "auto")
    assert not storage.micro_batch(trial.key).exists()


def test_a_failed_attempt_holds_no_memory_when_the_next_one_starts(
    study: Study, storage: Storage
) -> None:
    import gc

    from kdr.distill.methods import Methods

    held: list[int] = []

    def starved(batches: Iterable[Batch], _count: int, purpose: str) -> Iterator[Batch]:
        # each prepared training holds one
        held.append(sum(type(each) is Methods for each in gc.get_objects()))
        if len(held) < 3:
            torch.empty(1 << 60, dtype=torch.uint8)
        yield from batches

    trial = trial_of(study, storage, epochs=1)
    gc.collect()
    run(trial, storage, InlineEngine(storage, track=starved))
    assert held[:3] == [held[0]] * 3
