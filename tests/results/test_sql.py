"""SQL over the log: tables, columns, and statements that must not reach a file."""

import contextlib
import json
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdr.errors import QueryError
from kdr.results.flat_settings import canonical, flat_settings
from kdr.results.reader import Log, read_log
from kdr.results.schema import METRICS, SCHEMAS, ArmRow, TrialEvent, to_table
from kdr.results.sql import _setting_columns, connect, query, trials_table
from kdr.results.writer import LogWriter
from kdr.storage.layout import Storage
from tests.conftest import ExampleLog, local

LINKS = "distill.kdr.review_links"


START = datetime(2026, 1, 1, tzinfo=UTC)
STUDIES = ["one", "two"]
OF_TRIAL = {"study": st.sampled_from(STUDIES), "key": st.sampled_from("abc")}
TIME = st.integers(0, 6).map(lambda seconds: START + timedelta(seconds=seconds))
VALUE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-9, 9),
    st.text(max_size=2),
    st.just([1, "x"]),
    st.just({}),
)
CONFIG = st.fixed_dictionaries(
    {"p": VALUE, "q": st.one_of(VALUE, st.fixed_dictionaries({"r": VALUE}))}
).map(json.dumps)
EVENTS_OF_TRIALS = st.lists(
    st.builds(
        TrialEvent,
        **OF_TRIAL,
        event=st.sampled_from(
            ["planned", "started", "completed", "failed", "excluded", "included"]
        ),
        config=CONFIG,
        attempt=st.integers(1, 2),
        time=TIME,
        AP=st.sampled_from([None, 0.25]),
        reason=st.sampled_from([None, "why"]),
    ),
    max_size=8,
)
ARMS = st.lists(
    st.builds(ArmRow, **OF_TRIAL, arm=st.sampled_from(["x", "y"]), time=TIME), max_size=6
)


@pytest.fixture
def filled(example_log: ExampleLog) -> ExampleLog:
    example_log.trial(
        "a", parameters={"distill.kdr.weight": 1.0, LINKS: ["P4->P3", "P5->P4"]}, AP=0.3
    )
    example_log.trial(
        "b", parameters={"distill.kdr.weight": 5.0, LINKS: ["P5->P4", "P4->P3"]}, AP=0.1
    )
    example_log.trial(
        "c",
        parameters={"distill.kdr.weight": 5.0, LINKS: []},
        AP=None,
        event="failed",
        epoch=1,
        reason="why",
    )
    return example_log


def rows(log: ExampleLog, sql: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = query(log.storage, sql).to_pylist()
    return found


def test_a_trial_is_a_row_with_its_settings_as_columns(filled: ExampleLog) -> None:
    [row] = rows(
        filled,
        """SELECT study, arm, state, AP, epoch, "distill.kdr.weight", "training.epochs"
        FROM trials WHERE key='a'""",
    )
    assert row == {
        "study": "example", "arm": "a", "state": "completed", "AP": 0.3, "epoch": 4,
        "distill.kdr.weight": 1.0, "training.epochs": 4,
    }  # fmt: skip


def test_equal_subsets_are_one_group(filled: ExampleLog) -> None:
    found = rows(
        filled, f'SELECT "{LINKS}" AS links, count(*) AS n FROM trials GROUP BY 1 ORDER BY 2 DESC'
    )
    assert found == [{"links": '["P4->P3", "P5->P4"]', "n": 2}, {"links": "[]", "n": 1}]


def test_settings_columns_have_the_type_of_their_values(filled: ExampleLog) -> None:
    kinds = {row["column_name"]: row["column_type"] for row in rows(filled, "DESCRIBE trials")}
    assert kinds["distill.kdr.weight"] == "DOUBLE"
    assert kinds["training.batch_size"] == "BIGINT"
    assert kinds["student.inherit"] == "BOOLEAN"
    assert kinds[LINKS] == "VARCHAR"
    assert kinds["student.weights"] == "VARCHAR"


def test_epochs_and_losses_can_be_queried(filled: ExampleLog) -> None:
    found = rows(
        filled,
        "SELECT epoch, losses['classification'] AS loss FROM epochs WHERE key='a' ORDER BY epoch",
    )
    assert found == [{"epoch": number, "loss": 1.0 / number} for number in (1, 2, 3, 4)]


def test_events_has_every_event_and_times_are_utc(filled: ExampleLog) -> None:
    found = rows(
        filled,
        "SELECT event, time::VARCHAR AS time FROM events WHERE key='c' ORDER BY events.time",
    )
    assert [row["event"] for row in found] == ["started", "failed"]
    assert found[0]["time"].startswith("2026-01-01 00:00:")
    assert found[0]["time"].endswith("+00")


def test_a_shared_trial_has_a_row_in_each_study(filled: ExampleLog) -> None:
    LogWriter(filled.storage, "other").arms(
        [ArmRow(study="other", key="a", arm="baseline"), ArmRow(study="other", key="a", arm="x")]
    )
    found = rows(filled, "SELECT study, arm, ran_in, AP FROM trials WHERE key='a' ORDER BY study")
    assert [(row["study"], row["arm"], row["ran_in"], row["AP"]) for row in found] == [
        ("example", "a", "example", 0.3),
        ("other", "baseline and x", "example", 0.3),
    ]


@given(EVENTS_OF_TRIALS, ARMS)
def test_the_rows_are_the_states_of_each_studys_trials(
    events: list[TrialEvent], arms: list[ArmRow]
) -> None:
    log = Log(
        trials=to_table(events) if events else SCHEMAS["trials"].empty_table(),
        epochs=SCHEMAS["epochs"].empty_table(),
        arms=to_table(arms) if arms else SCHEMAS["arms"].empty_table(),
    )
    expected = [
        {
            "study": study,
            "arm": (
                " and ".join(row["arm"] for row in log.arms_of(study) if row["key"] == state.key)
                or None
            ),
            "state": state.state,
            "attempt": state.attempt,
            "AP": state.metrics["AP"],
            "reason": state.last.reason,
            "ran_in": state.study,
            **{path: shown(value) for path, value in flat_settings(state.config).items()},
        }
        for study in STUDIES
        for state in log.states_of(study).values()
    ]
    found = trials_table(log).to_pylist()
    assert len(found) == len(expected)
    for row, wanted in zip(found, expected, strict=True):
        assert {
            name: shown(row[name]) if "." in name or name in "pq" else row[name] for name in wanted
        } == wanted


def shown(value: Any) -> Any:
    """Returns a setting's value independent of its column's type."""
    return (
        value
        if value is None
        else str(value).lower()
        if isinstance(value, bool | str)
        else str(canonical(value))
    )


def test_a_setting_of_several_types_is_text(example_log: ExampleLog) -> None:
    for key, value in {"a": 1, "b": "one", "c": True, "d": [1, 2], "e": None}.items():
        event = TrialEvent(
            study="example", key=key, event="completed", config=json.dumps({"x": value})
        )
        LogWriter(example_log.storage, "example").event(event)
    assert [row["x"] for row in rows(example_log, "SELECT x FROM trials ORDER BY key")] == [
        "1",
        "one",
        "true",
        "[1, 2]",
        None,
    ]


SETTINGS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("xyz"), inner, max_size=2)
    ),
    max_leaves=5,
)


@given(
    configs=st.lists(
        st.dictionaries(st.sampled_from("abcd"), SETTINGS, max_size=3), min_size=1, max_size=6
    )
)
def test_settings_columns_have_each_trials_values(
    configs: list[dict[str, Any]],
) -> None:
    texts = [json.dumps(config, ensure_ascii=False) for config in configs]
    columns = _setting_columns(pa.chunked_array([texts]))
    flat = [
        flat_settings(text) if config else {} for text, config in zip(texts, configs, strict=True)
    ]
    assert columns.keys() == {path for settings in flat for path in settings}
    for path, column in columns.items():
        values = [canonical(settings.get(path)) for settings in flat]
        kinds = {type(value) for value in values if value is not None}
        if not kinds <= {int, float}:
            values = values if kinds in ({bool}, {str}) else list(map(_as_text, values))
        assert column.to_pylist() == values, path


def _as_text(value: Any) -> str | None:
    if value is None:
        return None
    return str(value).lower() if isinstance(value, bool) else str(value)


FORMS = [
    "SELECT * FROM epochs",
    "FROM epochs",
    "SELECT epochs FROM epochs",
    "SELECT * EXCLUDE (key, time) FROM epochs",
    "SELECT COLUMNS('loss.*') FROM epochs",
    "SELECT LOSSES FROM main.Epochs",
    "SELECT e.weighted_losses FROM (SELECT * FROM epochs) e",
    "SELECT TRY(losses['classification']) AS loss FROM epochs",
    "SELECT epoch FROM epochs WHERE losses IS NULL",
    "SELECT count(*) FROM epochs WHERE cardinality(losses) = 2",
    "SELECT count(losses), count(extras) FROM epochs",
    "SELECT epoch FROM epochs ORDER BY losses['classification']",
    (
        "SELECT AP FROM trials t WHERE EXISTS (FROM epochs e WHERE e.key = t.key AND losses['kdr'] "
        "> 1) ORDER BY key"
    ),
    (
        "SELECT sum(l['kdr']) FROM query('SELECT los' || 'ses AS l FROM epochs WHERE sec' || 'onds "
        "> 1')"
    ),
    "SELECT count(extras) FROM query_table('epochs')",
    "CREATE VIEW v AS FROM epochs; SELECT losses FROM v",
    "SUMMARIZE SELECT losses FROM epochs",
    "DESCRIBE epochs",
    "SELECT column_name, data_type FROM information_schema.columns ORDER BY ALL",
    "WITH epochs AS (SELECT 1 AS losses) FROM epochs",
    "SELECT epoch, avg(AP) AS AP FROM epochs GROUP BY epoch ORDER BY epoch",
    "SELECT count(*) FROM epochs WHERE AP > 0.2",
]


@pytest.mark.parametrize("sql", FORMS)
def test_every_form_of_statement_sees_all_columns_of_the_epochs(
    filled: ExampleLog, sql: str
) -> None:
    with connect(filled.storage) as everything:
        expected = everything.sql(sql).to_arrow_table()
    assert query(filled.storage, sql).equals(expected)


@pytest.mark.parametrize(
    ("sql", "read"),
    [
        ("SELECT arm, avg(AP) FROM trials GROUP BY arm", [set()]),
        ("SELECT epoch, avg(Seconds) FROM epochs WHERE AP > 0.1 GROUP BY epoch", [{"seconds"}]),
        ("SELECT epoch FROM epochs WHERE losses IS NOT NULL", [{"losses"}]),
        ("SELECT losses FROM trials", [{"losses"}]),
        ("SELECT * FROM epochs", [set(), {*SCHEMAS["epochs"].names}]),
    ],
)
def test_everything_is_read_only_if_a_statement_needs_unnamed_columns(
    filled: ExampleLog, monkeypatch: pytest.MonkeyPatch, sql: str, read: list[set[str]]
) -> None:
    readings = []

    def noted(storage: Storage, *, leave_out: Collection[str] = ()) -> Log:
        readings.append({*SCHEMAS["epochs"].names} - {*leave_out})
        return read_log(storage, leave_out=leave_out)

    monkeypatch.setattr("kdr.results.sql.read_log", noted)
    with contextlib.suppress(QueryError):
        query(filled.storage, sql)
    for_states = {"study", "key", "attempt", "epoch", "step", "time", *METRICS}
    assert readings == [for_states | columns for columns in read]


@pytest.mark.parametrize(
    "sql", ["SELECT count(*) FROM trials", "SELECT * FROM epochs", "SELECT nothing FROM trials"]
)
@pytest.mark.parametrize("table", ["trials", "epochs", "arms"])
def test_a_damaged_file_is_reported_once_by_every_statement(
    filled: ExampleLog, table: str, sql: str
) -> None:
    torn = filled.storage.log / table / "study=example" / "part-torn.parquet"
    torn.write_bytes(b"PAR1")
    reported: list[tuple[Any, ...]] = []
    with contextlib.suppress(QueryError):
        query(filled.storage, sql, on_log=lambda log: reported.append(log.damaged))
    assert reported == [(torn,)]


def test_an_empty_log_has_empty_tables(example_log: ExampleLog) -> None:
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
def storage_with_a_trial(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    storage = Storage.at(tmp_path_factory.mktemp("sql"))
    LogWriter(storage, "example").event(
        TrialEvent(study="example", key="k", event="completed", config="{}")
    )
    (local(storage.root) / "secret.txt").write_text("secret\n1\n")
    return storage


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_no_statement_reaches_a_file(storage_with_a_trial: Storage, attempt: str) -> None:
    root = local(storage_with_a_trial.root)
    fragment = next((root / "log" / "v1" / "trials" / "study=example").glob("part-*"))
    before = snapshot(root)
    with pytest.raises(QueryError, match=r"^query: .*Error: "):
        query(
            storage_with_a_trial,
            attempt.format(root=root, secret=root / "secret.txt", fragment=fragment),
        )
    assert snapshot(root) == before


def snapshot(root: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in root.rglob("*")}


@pytest.mark.parametrize(
    "sql",
    [
        "DROP TABLE trials",
        "UPDATE events SET AP = 1.0",
        "DELETE FROM epochs",
        "INSERT INTO arms FROM arms",
    ],
)
def test_the_tables_cannot_be_changed(filled: ExampleLog, sql: str) -> None:
    with pytest.raises(QueryError, match=r"query: (Catalog|Binder) Error: "):
        query(filled.storage, sql)


def test_python_variables_are_not_tables(filled: ExampleLog) -> None:
    secret = read_log(filled.storage).trials
    assert secret.num_rows
    with (
        connect(filled.storage) as connection,
        pytest.raises(duckdb.CatalogException, match="secret does not exist"),
    ):
        connection.sql("SELECT * FROM secret")


def test_a_large_statement_writes_no_temporary_file(filled: ExampleLog) -> None:
    assert rows(filled, "SELECT current_setting('temp_directory') AS folder") == [{"folder": ""}]


@pytest.mark.parametrize("sql", ["", "  ", "-- nothing", ";"])
def test_a_statement_without_rows_is_refused(filled: ExampleLog, sql: str) -> None:
    with pytest.raises(QueryError, match="must return rows, such as"):
        query(filled.storage, sql)


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("SELEC", r"syntax error at or near \"SELEC\""),
        (
            "SELECT * FROM trails",
            r"Table with name trails does not exist(.|\n)*Tables: trials, epochs, arms, events",
        ),
        ("SELECT best_ep FROM trials", r"Similar columns: .*best_epoch"),
        (
            "SELECT weight FROM trials",
            r'Write names with dots in double quotes: "distill.kdr.weight"',
        ),
        (
            "SELECT distill.kdr.weight FROM trials",
            r'Write names with dots in double quotes: "distill.kdr.weight"',
        ),
        (
            "SELECT distill.kdr.wieght FROM trials",
            r'Write names with dots in double quotes:.* "distill.kdr.weight"',
        ),
        ("SELECT 'a'::INT FROM trials", r"Could not convert string 'a' to INT"),
    ],
)
def test_an_sql_error_names_similar_columns(filled: ExampleLog, sql: str, message: str) -> None:
    with pytest.raises(QueryError, match=message):
        query(filled.storage, sql)
