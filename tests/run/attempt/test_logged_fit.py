"""A logged trial that is cancelled or excluded, or whose checkpoint is damaged."""

from pathlib import Path

import pytest
import torch

from kdr.config.study import Study, study_from
from kdr.config.trial import Trial
from kdr.errors import TrialFailure
from kdr.results.exclusion import exclude
from kdr.results.reader import read_log
from kdr.results.writer import LogWriter
from kdr.run.attempt.cancellation import request_cancel
from kdr.run.attempt.logged_fit import LoggedTrial, has_weights
from kdr.run.engine.engine import InlineEngine
from kdr.run.search.history import History
from kdr.run.study_arms import note_arm
from kdr.run.trial_identity import trial_maker
from kdr.storage.layout import Storage

EPOCHS = 3


@pytest.fixture
def study() -> Study:
    torch.set_num_threads(1)
    data = {"dataset": "shapes", "image_size_px": 64, "num_train": 8, "num_val": 4}
    training = {"epochs": EPOCHS, "batch_size": 8, "optimizer": "adamw", "lr": 1e-4}
    trial = {
        "data": data,
        "student": {"backbone": "mobilenet_v3_small", "fpn_channels": 32},
        "training": training,
    }
    search = {"trials": 2, "parameters": {"training.lr": {"float": [1e-5, 1e-3]}}}
    return study_from({"study": "one", "trial": trial, "search": search}, folder=Path())


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage.at(tmp_path)


@pytest.fixture
def trial(study: Study, storage: Storage) -> Trial:
    return trial_maker(study, storage)(study.base)


def run(
    study: Study, trial: Trial, storage: Storage, *, cancel_after: int | None = None
) -> list[int]:
    """Trains a trial and returns the numbers of the epochs that it yielded."""
    epochs = []
    with LogWriter(storage, "one") as log:
        note_arm(log, study, trial, parameters={"training.lr": trial.config.training.lr})
        for metrics in LoggedTrial(trial, log, storage).epochs(InlineEngine(storage)):
            epochs.append(metrics.epoch)
            if metrics.epoch == cancel_after:
                request_cancel(storage, trial.key, "it is slow")
    return epochs


@pytest.mark.slow
def test_a_cancelled_trial_ends_after_its_epoch_and_counts_as_ended(
    study: Study, trial: Trial, storage: Storage
) -> None:
    with pytest.raises(TrialFailure, match="cancelled: it is slow"):
        run(study, trial, storage, cancel_after=1)
    log = read_log(storage)
    state = log.states()[trial.key]
    assert (state.state, state.epoch, state.last.reason) == ("cancelled", 2, "it is slow")
    assert log.epochs_of(trial.key)["epoch"].to_pylist() == [1, 2]
    history = History.of(log, study)
    assert (history.known[trial.key].end, history.interrupted, history.used.trials) == (
        "failed",
        (),
        1,
    )
    # a later run resumes it from its checkpoint: the request was for that attempt
    assert run(study, trial, storage) == [1, 2, 3]
    assert read_log(storage).states()[trial.key].state == "completed"


@pytest.mark.slow
@pytest.mark.parametrize("cancel_after", [1, None], ids=["with a checkpoint", "completed"])
def test_an_excluded_trial_is_trained_from_its_first_epoch(
    study: Study, trial: Trial, storage: Storage, cancel_after: int | None
) -> None:
    if cancel_after:
        with pytest.raises(TrialFailure, match="cancelled"):
            run(study, trial, storage, cancel_after=cancel_after)
    else:
        run(study, trial, storage)
        # a process killed after saving the weights leaves both
        (storage.trial(trial.key) / "checkpoint.pt").write_bytes(b"of the excluded attempt")
    exclude(storage, read_log(storage).states()[trial.key], "a broken disk")
    assert not has_weights(trial, storage)
    history = History.of(read_log(storage), study)
    assert trial.key not in history.known
    assert len(history.interrupted) == 1
    assert history.reached[trial.key] == {}
    run(study, trial, storage)
    log = read_log(storage)
    events = [
        (row["attempt"], row["event"])
        for row in sorted(log.trials.to_pylist(), key=lambda row: row["time"])
    ]
    assert events[-2:] == [(2, "started"), (2, "completed")]
    assert log.epochs_of(trial.key)["attempt"].to_pylist() == [2] * EPOCHS
    assert has_weights(trial, storage)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_quarantined_and_the_trial_computes_the_same_again(
    study: Study, trial: Trial, storage: Storage, tmp_path: Path
) -> None:
    undisturbed = Storage.at(tmp_path / "undisturbed")
    assert run(study, trial, undisturbed) == [1, 2, 3]
    with pytest.raises(TrialFailure, match="cancelled"):
        run(study, trial, storage, cancel_after=1)
    checkpoint = storage.trial(trial.key) / "checkpoint.pt"
    content = bytearray(checkpoint.read_bytes())
    content[len(content) // 2] ^= 1
    checkpoint.write_bytes(bytes(content))
    assert run(study, trial, storage) == [1, 2, 3]
    events = read_log(storage).trials.to_pylist()
    assert [row["event"] for row in events] == ["started", "cancelled", "started", "completed"]
    moved = storage.quarantine / "trials" / trial.key / "checkpoint.pt"
    assert events[2]["reason"].endswith(f"it is now {moved}")
    assert moved.read_bytes() == content
    values = [
        read_log(place).epochs_of(trial.key).select(["epoch", "step", "AP", "lr"])
        for place in (storage, undisturbed)
    ]
    assert values[0].equals(values[1])
