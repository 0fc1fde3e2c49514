"""SQL over the trial log: DuckDB tables in memory, with no way to a file, so that no statement can harm the log.

Tables: `trials`, one row per study and trial with its current state and every setting as a column; `epochs`, without epochs
that a later attempt has done again; `arms`; and `events`, everything that happened.
"""

import difflib
import re
from collections.abc import Iterable
from typing import Any

import duckdb
import pyarrow as pa

from kdr.errors import QueryError
from kdr.results.flat_settings import canonical, flat_settings
from kdr.results.reader import Log, TrialState, read_log
from kdr.results.schema import METRICS, SCHEMAS
from kdr.storage import Storage

TABLES = ("trials", "epochs", "arms", "events")

_FROM_EVENT = (
    "time",
    "best_epoch",
    "best_AP",
    "seconds",
    "trials_known",
    "failure_kind",
    "reason",
    "weights",
    "data_id",
    "teacher_id",
    "commit",
    "dirty",
    "host",
    "device",
)
_TRIALS = pa.schema(
    [
        *((name, pa.string()) for name in ("study", "key", "arm", "role", "state")),
        *((name, pa.int64()) for name in ("seed", "attempt", "epoch")),
        *((name, pa.float64()) for name in METRICS),
        *(SCHEMAS["trials"].field(name).with_nullable(True) for name in _FROM_EVENT),
        ("ran_in", pa.string()),
        ("parameters", pa.string()),
    ]
)
_LOCKS = (
    "SET TimeZone = 'UTC'",
    "SET temp_directory = ''",
    "SET python_enable_replacements = false",
    "SET autoinstall_known_extensions = false",
    "SET autoload_known_extensions = false",
    "SET enable_external_access = false",
    "SET lock_configuration = true",
)


def query(source: Storage | Log, sql: str) -> pa.Table:
    """The answer of one SQL statement over the log. Nothing outside memory can be read or changed by it.

    Raises:
        QueryError: if DuckDB refuses the statement, or it answers with no rows and columns at all.
    """
    with connect(source) as connection:
        try:
            answer = connection.sql(sql)
            if answer is None:
                raise QueryError('query: needs a statement that gives rows, such as "SELECT key, AP FROM trials"')
            return answer.to_arrow_table()
        except duckdb.Error as error:
            raise QueryError(_explained(str(error), sql, connection)) from error


def connect(source: Storage | Log) -> duckdb.DuckDBPyConnection:
    """A DuckDB connection with the log's tables as they are now, its access to files shut and its settings locked."""
    log = source if isinstance(source, Log) else read_log(source)
    connection = duckdb.connect(":memory:")
    contents = {"trials": trials_table(log), "epochs": log.current_epochs, "arms": log.arms, "events": log.trials}
    for name in TABLES:
        connection.register("rows_to_copy", contents[name])
        connection.execute(f"CREATE TABLE {name} AS SELECT * FROM rows_to_copy")  # noqa: S608 - names of our own
        connection.unregister("rows_to_copy")
    for lock in _LOCKS:
        connection.execute(lock)
    return connection


def trials_table(log: Log) -> pa.Table:
    """One row per study and trial: its current state, its metrics, and every setting as a column named by its path.

    A trial that several studies use has a row in each of them, with the same state; `ran_in` names the study that ran it.
    """
    pairs = [(study, state) for study in log.studies() for state in log.states_of(study).values()]
    arms = {study: _arm_names(log, study) for study in log.studies()}
    rows = [_row(study, arms[study].get(state.key), state) for study, state in pairs]
    table = pa.Table.from_pylist(rows, schema=_TRIALS)
    settings = [flat_settings(state.config) for _, state in pairs]
    # DuckDB's column names do not tell upper from lower case; the setting `seed` is the column `seed`
    taken = {name.lower() for name in _TRIALS.names}
    for path in dict.fromkeys(path for found in settings for path in found if path.lower() not in taken):
        table = table.append_column(path, _column([found.get(path) for found in settings]))
    return table


def _arm_names(log: Log, study: str) -> dict[str, str]:
    names: dict[str, list[str]] = {}
    for row in log.arms_of(study):
        names.setdefault(row["key"], []).append(row["arm"])
    return {key: " and ".join(found) for key, found in names.items()}


def _row(study: str, arm: str | None, state: TrialState) -> dict[str, Any]:
    named = {name: getattr(state, name) for name in ("key", "role", "state", "seed", "attempt", "epoch", "parameters")}
    from_event = {name: getattr(state.last, name) for name in _FROM_EVENT}
    return {"study": study, "arm": arm, "ran_in": state.study, **named, **state.metrics, **from_event}


def _column(values: list[Any]) -> pa.Array:
    """Values of one setting as numbers or truth values where all are, as text where any is text or a list."""
    values = [canonical(value) for value in values]
    kinds = {type(value) for value in values if value is not None}
    if kinds == {bool}:
        return pa.array(values, pa.bool_())
    if kinds == {int}:
        return pa.array(values, pa.int64())
    if kinds and kinds <= {int, float}:
        return pa.array(values, pa.float64())
    return pa.array([value if value is None or isinstance(value, str) else _text(value) for value in values], pa.string())


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _explained(message: str, sql: str, connection: duckdb.DuckDBPyConnection) -> str:
    """DuckDB's message, then what exists: the tables, and columns with names near those that were not found."""
    found = connection.execute("SELECT DISTINCT column_name FROM information_schema.columns ORDER BY 1").fetchall()
    columns = [name for (name,) in found]
    lines = [f"query: {message.strip()}", f"Tables: {', '.join(TABLES)}"]
    if "not found" in message:
        near = _near(sql, columns)
        if near:
            lines.append("Columns with such names: " + ", ".join(near))
        if any("." in name for name in near):
            lines.append("Names with dots need double quotes: " + " ".join(f'"{name}"' for name in near if "." in name))
    return "\n".join(lines)


def _near(sql: str, columns: Iterable[str]) -> list[str]:
    """Columns whose name, or the last part of it, is close to a name in the statement."""
    by_name = {name.lower(): name for name in columns}
    by_name |= {name.lower().rpartition(".")[2]: name for name in columns if "." in name} | by_name
    near: dict[str, None] = {}
    for word in re.findall(r"[A-Za-z_][A-Za-z0-9_.]*", sql):
        if word in by_name.values():
            near |= {word: None} if "." in word else {}
        else:
            near |= dict.fromkeys(by_name[match] for match in difflib.get_close_matches(word.lower(), by_name, n=3, cutoff=0.75))
    return list(near)
