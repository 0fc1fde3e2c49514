"""A storage in an object store: a real S3 server on this machine, and pyarrow's own client."""

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from kdr.cli.app import app
from kdr.config.study import study_from
from kdr.errors import BusyError, StorageError
from kdr.results.check import check_log, quarantine
from kdr.results.compact import compact
from kdr.results.reader import read_log
from kdr.results.schema import ArmRow, EpochRow, Event, TrialEvent
from kdr.results.writer import LogWriter
from kdr.run.attempt.cancellation import cancel_reason, request_cancel
from kdr.run.driver import sole_driver as drivers
from kdr.run.driver.sole_driver import sole_driver
from kdr.run.driver.trial_claims import TrialClaims
from kdr.storage.files import listed
from kdr.storage.layout import Storage
from kdr.storage.object_store import ObjectPath
from kdr.storage.patience import PATIENCE_S
from tests.bucket_server import BucketServer, bucket_server


@pytest.fixture(scope="module")
def server() -> Iterator[BucketServer]:
    with bucket_server() as running:
        yield running


@pytest.fixture
def storage(server: BucketServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """An empty prefix in a bucket of the test's own."""
    monkeypatch.setenv("KDR_LOCAL", str(tmp_path / "local"))
    return server.place(f"bucket-{abs(hash(tmp_path)) % 10**9}")


def event(key: str, name: Event = "completed", **columns: Any) -> TrialEvent:
    return TrialEvent(study="s", key=key, event=name, config="{}", **columns)


def test_each_fragment_is_one_put_and_nothing_else(storage: Storage, server: BucketServer) -> None:
    with LogWriter(storage, "s", flush_every_s=1000) as log:
        log.arms([ArmRow(study="s", key="k", arm="a")])
        log.event(event("k", "started"))
        for number in range(1, 100):
            log.epoch(EpochRow(study="s", key="k", attempt=1, epoch=number, step=number))
        log.event(event("k", AP=0.5))
    assert server.counts() == {"PUT": 4}
    found = read_log(storage)
    assert found.states()["k"].metrics["AP"] == 0.5
    assert found.epochs_of("k")["epoch"].to_pylist() == list(range(1, 100))
    assert found.keys_of("s") == ("k",)


def test_a_log_is_compacted_checked_and_its_damaged_files_quarantined(
    storage: Storage, server: BucketServer
) -> None:
    log = LogWriter(storage, "s")
    for key in "abc":
        log.event(event(key))
    compact(storage, "s")
    log.event(event("d"))
    server.counts()
    compact(storage, "s")
    assert server.counts()["PUT"] <= 2 + 3, (
        "data and manifest; pyarrow recreates the folder's marker object when it deletes"
    )
    folder = storage.log / "trials" / "study=s"
    assert [path.name[:8] for path in listed(folder, "c-*.json")] == ["c-000001", "c-000002"]
    assert check_log(storage) == ()
    torn, foreign = folder / "part-torn.parquet", folder / "notes.txt"
    torn.write_bytes(b"PAR1")
    foreign.write_bytes(b"hello")
    checkpoint = storage.trial("a") / "checkpoint.pt"
    checkpoint.write_bytes(b"half")
    assert read_log(storage).damaged == (torn,)
    findings = check_log(storage)
    assert [(finding.kind, finding.where) for finding in findings] == [
        ("damaged", str(torn)),
        ("foreign", str(foreign)),
        ("damaged", str(checkpoint)),
    ]
    moved = [path for finding in findings for path in quarantine(storage, finding)]
    assert moved[2] == storage.quarantine / "trials" / "a" / "checkpoint.pt"
    assert moved[0].read_bytes() == b"PAR1"
    assert check_log(storage) == ()
    assert sorted(read_log(storage).states()) == ["a", "b", "c", "d"]


@pytest.mark.slow
def test_the_commands_read_a_bucket(storage: Storage, example_log: Any) -> None:
    example_log.storage = storage
    example_log.trial("abcdef123", AP=0.5)

    def command(*arguments: str) -> str:
        result = CliRunner().invoke(
            app, [*arguments, "--storage", str(storage.root)], catch_exceptions=False
        )
        assert result.exit_code == 0, result.output
        return result.stdout

    assert "abcdef" in command("status", "example")
    assert "0.5" in command("query", "SELECT AP FROM trials")
    assert "0.5" in command("table", "example", "--by", "distill.kdr.weight")
    assert " files merged into 3" in command("log", "compact")
    assert command("log", "check").startswith(f"{storage.log}: 3 files of the log, no problem")


def test_a_bucket_has_one_driver_per_study_and_a_dead_one_is_replaced(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, server: BucketServer
) -> None:
    monkeypatch.setattr(drivers, "BEAT_S", 0.05)
    monkeypatch.setattr(drivers, "DEAD_AFTER_S", 0.5)
    with sole_driver(storage, "s", on_waiting=pytest.fail):
        with (
            pytest.raises(BusyError, match="study s is already running"),
            sole_driver(storage, "s", on_waiting=pytest.fail),
        ):
            pass
        [claim] = listed(storage.drivers("s"))
        content = claim.read_text()
        time.sleep(0.3)
        assert claim.read_text() != content, "no heartbeat"
    assert listed(storage.drivers("s")) == []
    claim.write_bytes(content.replace(drivers._machine(), "another machine").encode())
    messages: list[str] = []
    with sole_driver(storage, "s", on_waiting=messages.append):
        assert len(messages) == 1
        assert not claim.exists()


def test_a_trial_in_a_bucket_is_claimed_by_one_driver_at_a_time(storage: Storage) -> None:
    with (
        sole_driver(storage, "one", on_waiting=pytest.fail) as one,
        TrialClaims(storage, "one", one) as first,
    ):
        assert first.take(["a", "b"]) == {"a", "b"}
        with (
            sole_driver(storage, "two", on_waiting=pytest.fail) as two,
            TrialClaims(storage, "two", two) as second,
        ):
            assert second.take(["a", "c"]) == {"c"}
            assert [(holder.study, holder.keys) for holder in second.holders(["a", "c"])] == [
                ("one", frozenset({"a"}))
            ]
            first.release("a")
            assert second.take(["a"]) == {"a"}
    assert listed(storage.drivers("one")) == listed(storage.drivers("two")) == []


def test_a_cancellation_request_is_seen(storage: Storage) -> None:
    assert cancel_reason(storage, "k") is None
    request_cancel(storage, "k", "it is slow")
    assert cancel_reason(storage, "k") == "it is slow"


@pytest.mark.slow
def test_no_row_is_lost_while_the_store_is_unreachable(
    storage: Storage, server: BucketServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages: list[str] = []

    def say(text: str) -> None:
        messages.append(text)
        if len(messages) == 1:
            threading.Timer(1.0, server.start).start()

    monkeypatch.setattr("kdr.storage.patience._PAUSES_S", (0.1, 0.2))
    monkeypatch.setattr("kdr.storage.patience._say", say)
    patient = storage.patient()
    assert isinstance(patient.root, ObjectPath)
    assert patient.root.patience_s == PATIENCE_S
    with LogWriter(patient, "s", flush_every_s=0) as log:
        log.event(event("k", "started"))
        server.stop()
        for number in range(1, 4):
            log.epoch(EpochRow(study="s", key="k", attempt=1, epoch=number, step=number))
        log.event(event("k"))
    found = read_log(storage)
    assert (found.states()["k"].state, found.epochs_of("k")["epoch"].to_pylist()) == (
        "completed",
        [1, 2, 3],
    )
    first, last = messages
    assert first.startswith("The storage is unreachable (")
    assert first.endswith("Retrying for up to 300 s")
    assert last.startswith("The storage is reachable again, after ")


@pytest.mark.slow
def test_an_unreachable_store_is_an_error_not_an_empty_log(
    server: BucketServer, storage: Storage
) -> None:
    assert isinstance(storage.root, ObjectPath)
    LogWriter(storage, "s").event(event("k"))
    hasty = Storage(storage.root.with_patience(0))
    server.stop()
    try:
        with pytest.raises(
            StorageError,
            match=r"s3://.*: the object store is unreachable \(.*connect.*is kept",
        ):
            read_log(hasty)
        with pytest.raises(StorageError, match="is unreachable"):
            LogWriter(hasty, "s").event(event("k"))
    finally:
        server.start()
    assert list(read_log(hasty).states()) == ["k"]


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        (
            "s3://no-such-bucket/runs",
            r"must be in an existing bucket, got s3://no-such-bucket, which does not exist\. Cr",
        ),
        (
            "http://host/runs",
            r"must be a folder or a URL that starts with s3://, gs://, got http://\.\.\.",
        ),
        ("file:///runs", r"must be a folder or a URL that starts with s3://"),
        ("s3://", r"must be s3://bucket/prefix"),
        (
            "s3://key:secret@bucket/runs",
            (
                r"must be s3://bucket/prefix, with credentials and options in the environment, got"
                r" another form$"
            ),
        ),
        ("s3://bucket/runs?region=x", r"must be s3://bucket/prefix"),
    ],
)
def test_an_unusable_url_is_refused_at_once(server: BucketServer, url: str, problem: str) -> None:
    with pytest.raises(StorageError, match=problem):
        Storage.at(url)


@pytest.mark.parametrize(
    "word", ["ACCESS_DENIED", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH"]
)
def test_refused_credentials_are_an_error_that_says_where_they_come_from(
    storage: Storage, word: str
) -> None:
    """With pyarrow's messages, because the server of these tests accepts any credentials."""
    assert isinstance(storage.root, ObjectPath)

    def refuse(_store: Any) -> None:
        raise OSError(
            f"When getting information for key 'x' in bucket 'b': AWS Error {word} during "
            "HeadObject operation: no"
        )

    with pytest.raises(
        StorageError,
        match=(
            rf"needs credentials that may read and write s3://.*{word}.*Set AWS_ACCESS_KEY_ID and"
        ),
    ):
        storage.root._ask(refuse)


def test_a_large_file_survives_the_round_trip_and_a_failed_write_keeps_it(
    storage: Storage,
) -> None:
    place = storage.trial("k") / "checkpoint.pt"
    content = b"0123456789" * 1_200_000
    with place.written_aside() as aside:
        aside.write_bytes(content)
    with contextlib.suppress(ZeroDivisionError), place.written_aside() as aside:
        aside.write_bytes(b"half")
        1 / 0  # noqa: B018
    with place.fetched() as copy:
        assert copy.read_bytes() == content
    assert not copy.exists()
    assert not aside.exists()


def test_files_that_must_stay_on_this_machine_do(storage: Storage, tmp_path: Path) -> None:
    for folder in (
        storage.data,
        storage.ray,
        storage.search("s"),
        storage.loggers("s"),
        storage.lock("k"),
    ):
        assert folder.is_relative_to(tmp_path / "local")
    for place in (
        storage.log,
        storage.trials,
        storage.teacher("t"),
        storage.drivers("s"),
        storage.preflight("s"),
    ):
        assert isinstance(place, ObjectPath)
    assert Storage.at(tmp_path).local == tmp_path
    with pytest.raises(TypeError, match="ObjectPath"):
        Path(storage.log)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_trial_resumes_from_its_checkpoint_in_the_bucket_on_another_machine(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from kdr.run.attempt.logged_fit import LoggedTrial, has_weights, teacher_of
    from kdr.run.engine.engine import InlineEngine
    from kdr.run.trial_identity import trial_maker

    torch.set_num_threads(1)
    training = {"epochs": 2, "batch_size": 8, "optimizer": "adamw", "lr": 1e-4}
    mobilenet = {"backbone": "mobilenet_v3_small", "fpn_channels": 32}
    trial = {
        "data": {"dataset": "shapes", "image_size_px": 64, "num_train": 8, "num_val": 4},
        "teacher": {**mobilenet, "training": {**training, "epochs": 1}},
        "student": mobilenet,
        "distill": {"kdr": {}},
        "training": training,
    }
    study = study_from({"study": "s", "trial": trial}, folder=Path())

    def run(place: Storage, *, epochs: int) -> None:
        one = trial_maker(study, place)(study.base)
        with LogWriter(place, "s") as log:
            attempt = LoggedTrial(one, log, place).epochs(InlineEngine(place))
            for _, _metrics in zip(range(epochs), attempt, strict=False):
                pass
            attempt.close()

    folder = Storage.at(tmp_path / "folder")
    run(folder, epochs=3)
    run(storage, epochs=1)
    one = trial_maker(study, storage)(study.base)
    assert (storage.trial(one.key) / "checkpoint.pt").exists()
    monkeypatch.setenv("KDR_LOCAL", str(tmp_path / "another machine"))
    run(storage, epochs=3)
    teacher = teacher_of(one)
    assert teacher is not None
    assert has_weights(teacher, storage)
    assert not (storage.trial(one.key) / "checkpoint.pt").exists()
    state = read_log(storage).states()[one.key]
    assert (state.state, state.attempt, state.last.weights) == (
        "completed",
        2,
        f"trials/{one.key}/student.pt",
    )
    columns = ["epoch", "step", "AP", "lr", "losses"]
    values = [
        read_log(place).epochs_of(one.key).select(columns).to_pylist()
        for place in (storage, folder)
    ]
    assert values[0] == values[1]
    with (storage.trial(one.key) / "student.pt").fetched() as copy:
        assert (
            copy.read_bytes()
            == (tmp_path / "folder" / "trials" / one.key / "student.pt").read_bytes()
        )


def test_objects_have_an_age_and_are_exposed_at_a_local_path(
    storage: Storage, tmp_path: Path
) -> None:
    folder = storage.teacher("t")
    (folder / "a.json").write_bytes(b"[]")
    assert 0 <= (folder / "a.json").age_s() + 1 < 60  # the server's clock counts whole seconds
    with pytest.raises(FileNotFoundError):
        (folder / "b.json").age_s()
    folder.expose_at(tmp_path / "exposed")
    assert [path.read_text() for path in (tmp_path / "exposed").iterdir()] == ["[]"]
