from pathlib import Path

import duckdb
import pytest

from kdr.errors import QueryError
from kdr.results.reader import read_log
from kdr.results.schema import ArmRow, TrialEvent
from kdr.results.sql import connect, query
from kdr.results.writer import LogWriter
from kdr.storage import Storage

LINKS = "distill.kdr.review_links"


@pytest.fixture
def filled(example_log):
    example_log.trial("a", parameters={"distill.kdr.weight": 1.0, LINKS: ["P4->P3", "P5->P4"]}, AP=0.3)
    example_log.trial("b", parameters={"distill.kdr.weight": 5.0, LINKS: ["P5->P4", "P4->P3"]}, AP=0.1)
    example_log.trial("c", parameters={"distill.kdr.weight": 5.0, LINKS: []}, AP=None, event="failed", epoch=1, reason="why")
    return example_log


def rows(log, sql):
    return query(log.storage, sql).to_pylist()


def test_a_trial_is_one_row_with_its_settings_as_columns(filled):
    [row] = rows(
        filled, """SELECT study, arm, state, AP, epoch, "distill.kdr.weight", "training.epochs" FROM trials WHERE key='a'"""
    )
    assert row == {
        "study": "example", "arm": "a", "state": "completed", "AP": 0.3, "epoch": 4,
        "distill.kdr.weight": 1.0, "training.epochs": 4,
    }  # fmt: skip


def test_equal_subsets_fall_into_one_group(filled):
    found = rows(filled, f'SELECT "{LINKS}" AS links, count(*) AS n FROM trials GROUP BY 1 ORDER BY 2 DESC')
    assert found == [{"links": '["P4->P3", "P5->P4"]', "n": 2}, {"links": "[]", "n": 1}]


def test_numbers_lists_and_words_get_the_type_that_holds_them(filled):
    kinds = {row["column_name"]: row["column_type"] for row in rows(filled, "DESCRIBE trials")}
    assert kinds["distill.kdr.weight"] == "DOUBLE"
    assert kinds["training.batch_size"] == "BIGINT"
    assert kinds["student.inherit"] == "BOOLEAN"
    assert kinds[LINKS] == "VARCHAR"
    assert kinds["student.weights"] == "VARCHAR"


def test_epochs_and_losses_can_be_asked_for(filled):
    found = rows(filled, "SELECT epoch, losses['classification'] AS loss FROM epochs WHERE key='a' ORDER BY epoch")
    assert found == [{"epoch": number, "loss": 1.0 / number} for number in (1, 2, 3, 4)]


def test_events_hold_everything_and_times_are_utc(filled):
    found = rows(filled, "SELECT event, time::VARCHAR AS time FROM events WHERE key='c' ORDER BY events.time")
    assert [row["event"] for row in found] == ["started", "failed"]
    assert found[0]["time"].startswith("2026-01-01 00:00:")
    assert found[0]["time"].endswith("+00")


def test_a_shared_trial_is_a_row_of_each_study(filled):
    LogWriter(filled.storage, "other").arms(
        [ArmRow(study="other", key="a", arm="baseline"), ArmRow(study="other", key="a", arm="x")]
    )
    found = rows(filled, "SELECT study, arm, ran_in, AP FROM trials WHERE key='a' ORDER BY study")
    assert [(row["study"], row["arm"], row["ran_in"], row["AP"]) for row in found] == [
        ("example", "a", "example", 0.3),
        ("other", "baseline and x", "example", 0.3),
    ]


def test_an_empty_log_has_empty_tables(example_log):
    for table in ("trials", "epochs", "arms", "events"):
        assert rows(example_log, f"SELECT * FROM {table}") == []


ATTEMPTS = [
    "COPY trials TO '{root}/out.parquet'",
    "COPY trials TO '{fragment}'",
    "COPY (SELECT 1) TO '{root}/out.csv'",
    "COPY trials FROM '{fragment}'",
    "EXPORT DATABASE '{root}/export'",
    "IMPORT DATABASE '{root}'",
    "ATTACH '{root}/new.duckdb'",
    "SELECT * FROM read_csv('{secret}')",
    "SELECT * FROM read_text('{secret}')",
    "SELECT * FROM read_blob('{secret}')",
    "SELECT * FROM read_json('{secret}')",
    "SELECT * FROM read_parquet('{fragment}')",
    "SELECT * FROM '{fragment}'",
    "SELECT * FROM glob('{root}/*')",
    "SELECT * FROM sniff_csv('{secret}')",
    "SELECT * FROM read_ndjson('{secret}')",
    "SELECT * FROM parquet_metadata('{fragment}')",
    "SELECT * FROM parquet_schema('{fragment}')",
    "SELECT * FROM parquet_kv_metadata('{fragment}')",
    "CREATE VIEW v AS SELECT * FROM read_csv('{secret}')",
    "CREATE TABLE t AS FROM '{secret}'",
    "CREATE PERSISTENT SECRET s (TYPE s3, KEY_ID 'k', SECRET 's')",
    "SELECT * FROM read_csv('https://127.0.0.1/x.csv')",
    "ATTACH '{fragment}' (TYPE sqlite)",
    "INSTALL httpfs",
    "LOAD httpfs",
    "LOAD '{root}/extension.duckdb_extension'",
    "SET enable_external_access = true",
    "SET lock_configuration = false",
    "RESET enable_external_access",
    "SET allowed_directories = ['{root}']",
    "SET temp_directory = '{root}'",
    "SET python_enable_replacements = true",
    "PRAGMA enable_profiling",
    "PRAGMA profiling_output = '{root}/profile.json'",
    "CALL enable_logging(storage = 'file', storage_path = '{root}/logs')",
    "SELECT 1; COPY trials TO '{root}/out.parquet'",
]


@pytest.fixture(scope="module")
def storage_with_a_trial(tmp_path_factory):
    storage = Storage.at(tmp_path_factory.mktemp("sql"))
    LogWriter(storage, "example").event(TrialEvent(study="example", key="k", event="completed", config="{}"))
    (storage.root / "secret.txt").write_text("secret\n1\n")
    return storage


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_no_statement_reaches_a_file(storage_with_a_trial, attempt):
    root = storage_with_a_trial.root
    fragment = next((storage_with_a_trial.log / "trials" / "study=example").glob("part-*"))
    before = snapshot(root)
    with pytest.raises(QueryError, match=r"^query: .*Error: "):
        query(storage_with_a_trial, attempt.format(root=root, secret=root / "secret.txt", fragment=fragment))
    assert snapshot(root) == before


def snapshot(root: Path):
    return {path: path.read_bytes() if path.is_file() else None for path in root.rglob("*")}


def test_changes_stay_in_memory(filled, tmp_path):
    before = snapshot(tmp_path)
    query(filled.storage, "DROP TABLE trials")
    query(filled.storage, "UPDATE events SET AP = 1.0")
    assert snapshot(tmp_path) == before
    assert len(rows(filled, "SELECT * FROM trials")) == 3


def test_python_variables_of_the_caller_are_no_tables(filled):
    secret = read_log(filled.storage).trials
    assert secret.num_rows
    with connect(filled.storage) as connection, pytest.raises(duckdb.CatalogException, match="secret does not exist"):
        connection.sql("SELECT * FROM secret")


def test_a_large_statement_spills_into_no_file(filled):
    assert rows(filled, "SELECT current_setting('temp_directory') AS folder") == [{"folder": ""}]


@pytest.mark.parametrize("sql", ["", "  ", "-- nothing", ";"])
def test_a_statement_without_an_answer_says_what_is_needed(filled, sql):
    with pytest.raises(QueryError, match="needs a statement that gives rows"):
        query(filled.storage, sql)


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("SELEC", r"syntax error at or near \"SELEC\""),
        ("SELECT * FROM trails", r"Table with name trails does not exist(.|\n)*Tables: trials, epochs, arms, events"),
        ("SELECT best_ep FROM trials", r"Columns with such names: .*best_epoch"),
        ("SELECT weight FROM trials", r'Names with dots need double quotes: "distill.kdr.weight"'),
        ("SELECT distill.kdr.weight FROM trials", r'Names with dots need double quotes: "distill.kdr.weight"'),
        ("SELECT distill.kdr.wieght FROM trials", r'Names with dots need double quotes:.* "distill.kdr.weight"'),
        ("SELECT 'a'::INT FROM trials", r"Could not convert string 'a' to INT"),
    ],
)
def test_an_sql_error_names_what_exists(filled, sql, message):
    with pytest.raises(QueryError, match=message):
        query(filled.storage, sql)
