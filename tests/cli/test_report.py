import threading
import time
from pathlib import Path

import pytest

from kdr.cli import report
from kdr.errors import ConfigError, StorageError
from tests.cli.conftest import Ask, Invoke
from tests.conftest import ExampleLog


@pytest.fixture
def ask(invoke: Invoke, example_log: ExampleLog) -> Ask:
    example_log.trial("a", AP=0.3)
    return lambda *arguments: invoke(
        report.command, *arguments, "--storage", example_log.storage.root
    )


def test_the_report_page_is_one_file(ask: Ask, tmp_path: Path) -> None:
    path = tmp_path / "out.html"
    result = ask("example", "-o", path)
    assert result.stdout.startswith(f"Written to {path} (")
    assert "<h1>example</h1>" in path.read_text()
    assert 4 < path.stat().st_size / 2**20 < 15


def test_the_default_file_is_named_after_the_study(
    ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ask("example")
    assert (tmp_path / "example.html").exists()


def test_the_page_shows_the_question_of_the_study_file(ask: Ask, tmp_path: Path) -> None:
    study = tmp_path / "study.yaml"
    study.write_text("# Question: what helps <most>?\nstudy: example\n")
    ask(study, "-o", tmp_path / "out.html")
    assert '<p class="question">What helps &lt;most&gt;?</p>' in (tmp_path / "out.html").read_text()


def test_an_unknown_study_and_metric_are_refused(ask: Ask, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="study nothing is not in the log"):
        ask("nothing", "-o", tmp_path / "out.html")
    with pytest.raises(ConfigError, match="--metric: must be one of AP"):
        ask("example", "--metric", "speed", "-o", tmp_path / "out.html")


def test_an_unwritable_file_is_an_error(ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"--output: cannot write .*out.html"):
        ask("example", "-o", tmp_path / "file" / "out.html")


def test_watch_rewrites_the_page_until_the_study_is_over(
    ask: Ask, example_log: ExampleLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "WATCH_EVERY_S", 0.2)
    path, pages = tmp_path / "out.html", []

    def finish() -> None:
        deadline = time.monotonic() + 60
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        pages.append(path.read_text())
        for number in range(7):
            example_log.trial(f"trial-{number}")

    other = threading.Thread(target=finish)
    other.start()
    ask("example", "-o", path, "--watch")
    other.join()
    assert "data-reload-s=" in pages[0]
    assert "data-reload-s=" not in path.read_text()
    assert "8 of 8 trials (8 completed)" in path.read_text()
