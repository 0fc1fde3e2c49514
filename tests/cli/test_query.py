import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from kdr.cli.query import command
from kdr.errors import ConfigError, QueryError, StorageError
from tests.cli.conftest import Ask, Invoke
from tests.conftest import ExampleLog

SQL = 'SELECT key, AP, "distill.kdr.weight" FROM trials ORDER BY AP DESC'


@pytest.fixture
def ask(invoke: Invoke, example_log: ExampleLog) -> Ask:
    example_log.trial("a", parameters={"distill.kdr.weight": 1.0}, AP=0.25)
    example_log.trial("b", parameters={"distill.kdr.weight": 5.0}, AP=0.5)
    return lambda *arguments: invoke(command, *arguments, "--storage", example_log.storage.root)


def test_an_answer_is_printed_as_lines(ask: Ask) -> None:
    assert ask(SQL).stdout.splitlines() == [
        "key    AP  weight",
        "b     0.5       5",
        "a    0.25       1",
    ]


def test_an_answer_is_printed_as_csv_and_json(ask: Ask) -> None:
    assert (
        ask(SQL, "--format", "csv").stdout == "key,AP,distill.kdr.weight\nb,0.5,5.0\na,0.25,1.0\n"
    )
    assert json.loads(ask(SQL, "--format", "json").stdout) == [
        {"key": "b", "AP": 0.5, "distill.kdr.weight": 5.0},
        {"key": "a", "AP": 0.25, "distill.kdr.weight": 1.0},
    ]


def test_sums_of_whole_numbers_are_numbers(ask: Ask) -> None:
    assert json.loads(ask("SELECT sum(epoch) AS n FROM epochs", "--format", "json").stdout) == [
        {"n": 20}
    ]


def test_an_empty_answer_shows_its_columns(ask: Ask) -> None:
    assert ask("SELECT key FROM trials WHERE false").stdout == "key\n"


@pytest.mark.parametrize("ending", ["csv", "json", "parquet", "txt"])
def test_the_ending_of_the_file_selects_the_format(ask: Ask, tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"answer.{ending}"
    assert ask(SQL, "--output", path).stdout == ""
    if ending == "parquet":
        assert pq.read_table(path)["key"].to_pylist() == ["b", "a"]
    elif ending == "json":
        assert [row["key"] for row in json.loads(path.read_text())] == ["b", "a"]
    else:
        assert path.read_text().startswith("key,AP" if ending == "csv" else "key    AP")


def test_an_explicit_format_overrides_the_ending(ask: Ask, tmp_path: Path) -> None:
    ask(SQL, "--output", tmp_path / "x.csv", "--format", "json")
    assert json.loads((tmp_path / "x.csv").read_text())


def test_parquet_needs_a_file(ask: Ask) -> None:
    with pytest.raises(ConfigError, match=r"--format: parquet needs a file. Add --output FILE"):
        ask(SQL, "--format", "parquet")


def test_an_unwritable_file_is_an_error(ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"--output: cannot write .*file/x.csv"):
        ask(SQL, "--output", tmp_path / "file" / "x.csv")


def test_an_sql_error_reaches_the_user(ask: Ask) -> None:
    with pytest.raises(QueryError, match="Tables: trials, epochs, arms, events"):
        ask("SELECT * FROM nothing")


def test_a_damaged_file_is_a_warning_beside_the_answer(ask: Ask, example_log: ExampleLog) -> None:
    torn = example_log.storage.log / "trials" / "study=example" / "part-torn.parquet"
    torn.write_bytes(b"PAR1")
    result = ask("SELECT count(*) AS n FROM trials")
    assert result.stdout == "n\n2\n"
    assert f"warning: {torn}" in result.stderr


def test_the_storage_may_come_from_the_environment(
    invoke: Invoke, example_log: ExampleLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    example_log.trial("a")
    monkeypatch.setenv("KDR_STORAGE", str(example_log.storage.root))
    assert invoke(command, "SELECT key FROM trials").stdout == "key\na\n"
