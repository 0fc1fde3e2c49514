"""SQL over the trial log: DuckDB on Arrow tables in memory, without access to files.

So no statement can harm the log. Tables: `trials`, a row for each study and trial with its state
and every setting as a column; `epochs`, without those that a later attempt repeated; `arms`; and
`events`, all events.
"""

import difflib
import re
from collections.abc import Callable, Iterable
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from kdr.errors import QueryError
from kdr.results.current_rows import first_of_each
from kdr.results.flat_settings import canonical, flat_settings
from kdr.results.reader import Log, read_log
from kdr.results.schema import METRICS, SCHEMAS
from kdr.storage.layout import Storage

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
_NOT_IN_STATES = [
    column.name for column in SCHEMAS["epochs"] if column.nullable and column.name not in METRICS
]
"""Columns of the epochs on which no trial's state depends."""
# In this order: a locked configuration can no longer be changed, neither by a statement nor here.
_LOCKS = (
    "SET TimeZone = 'UTC'",
    "SET temp_directory = ''",
    "SET python_enable_replacements = false",
    "SET autoinstall_known_extensions = false",
    "SET autoload_known_extensions = false",
    "SET enable_external_access = false",
    "SET lock_configuration = true",
)


class _NarrowEpochs(ds.Dataset):  # type: ignore[misc]  # pyarrow has no types
    """The table `epochs` without some of its columns. It records whether a statement needs one of
    those: DuckDB asks a dataset for exactly the columns that a statement uses.
    """

    schema = SCHEMAS["epochs"]

    def __init__(self, epochs: pa.Table) -> None:
        self._rows = ds.dataset(epochs)
        self.is_too_narrow = False

    def scanner(self, columns: list[str] | None = None, **options: Any) -> ds.Scanner:
        """Returns a scan of some columns, by default of all.

        Raises:
            pyarrow.ArrowInvalid: if the scan or its filter uses a missing column.
        """
        try:
            return self._rows.scanner(
                columns=self.schema.names if columns is None else columns, **options
            )
        except pa.ArrowInvalid:
            self.is_too_narrow = True
            raise


def query(
    storage: Storage, sql: str, *, on_log: Callable[[Log], None] = lambda _: None
) -> pa.Table:
    """Returns the result of an SQL statement over the log. The statement can neither read nor
    change anything outside of memory.

    Args:
        storage: where the log is.
        sql: the statement.
        on_log: is called with the log, even if the statement is rejected.

    Raises:
        QueryError: if DuckDB rejects the statement, or it returns no columns at all.
    """
    # Columns whose names are not in the statement are probably not needed, and leaving them out
    # saves most of the reading. If the guess is wrong, as for `SELECT *`, everything is read.
    not_named = [name for name in _NOT_IN_STATES if name not in sql.lower()]
    log = read_log(storage, leave_out=not_named)
    epochs = _NarrowEpochs(log.current_epochs.drop_columns(not_named))
    answer = _answer(log, epochs, sql)
    if epochs.is_too_narrow:
        log = read_log(storage)
        answer = _answer(log, log.current_epochs, sql)
    on_log(log)
    if isinstance(answer, QueryError):
        raise answer
    return answer


def connect(storage: Storage) -> duckdb.DuckDBPyConnection:
    """Returns a DuckDB connection with the log's tables as of now, without access to files and with
    locked settings.
    """
    log = read_log(storage)
    return _connection(log, log.current_epochs)


def trials_table(log: Log) -> pa.Table:
    """Returns a row for each study and trial: state, metrics, and every setting as a column.

    A trial that several studies use has a row for each of them, with the same state; `ran_in` is
    the study that ran it.
    """
    used, known, events = log.used_keys, log.current_trials, log.deciding_events
    row = pc.index_in(used["key"], value_set=known["key"])
    used, row = used.filter(pc.is_valid(row)), row.drop_null()
    known, events = known.take(row), events.take(row)
    arms = _arm_names(log)
    pairs = zip(used["study"].to_pylist(), used["key"].to_pylist(), strict=True)
    columns = {
        "study": used["study"],
        "key": used["key"],
        "arm": pa.array([arms.get(pair) for pair in pairs], pa.string()),
        "role": events["role"],
        "state": known["state"],
        "seed": events["seed"],
        "attempt": events["attempt"],
        **{name: known[name] for name in ("epoch", *METRICS)},
        **{name: events[name] for name in _FROM_EVENT},
        "ran_in": events["study"],
        "parameters": known["parameters"],
    }
    # DuckDB's column names are case-insensitive, so a setting must not differ from another column
    # in case only. The setting `seed` is the column `seed`.
    taken = {name.lower() for name in columns}
    settings = _setting_columns(events["config"])
    return pa.table(
        columns | {path: column for path, column in settings.items() if path.lower() not in taken}
    )


def _answer(log: Log, epochs: pa.Table | ds.Dataset, sql: str) -> pa.Table | QueryError:
    with _connection(log, epochs) as connection:
        try:
            answer = connection.sql(sql)
            if answer is None:
                return QueryError('query: must return rows, such as "SELECT key, AP FROM trials"')
            return answer.to_arrow_table()
        except duckdb.Error as error:
            return QueryError(_explained(str(error), sql, connection))


def _connection(log: Log, epochs: pa.Table | ds.Dataset) -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect(":memory:")
    contents = {
        "trials": trials_table(log),
        "epochs": epochs,
        "arms": log.arms,
        "events": log.trials,
    }
    for name in TABLES:
        connection.register(name, contents[name])
    for lock in _LOCKS:
        connection.execute(lock)
    return connection


def _arm_names(log: Log) -> dict[tuple[str, str], str]:
    """Returns the arms of each study and key, joined by ' and ', in the order of the log."""
    rows = first_of_each(log.arms.sort_by("time"), "study", "key", "arm").sort_by("row")
    names: dict[tuple[str, str], list[str]] = {}
    for study, key, arm in zip(
        *(rows[name].to_pylist() for name in ("study", "key", "arm")), strict=True
    ):
        names.setdefault((study, key), []).append(arm)
    return {pair: " and ".join(found) for pair, found in names.items()}


def _setting_columns(configs: pa.ChunkedArray) -> dict[str, pa.Array]:
    """Returns a column of values for each setting, by path.

    Most trials of a log differ in a setting or two, so each distinct section of a config, such as
    `data`, is parsed once.
    """
    with duckdb.connect(":memory:") as connection:
        connection.register(
            "configs",
            pa.table({"config": configs, "row": pa.array(range(len(configs)), pa.int64())}),
        )
        keys = connection.sql(
            "SELECT json_keys(config) AS keys FROM configs GROUP BY keys ORDER BY min(row)"
        ).fetchall()
        names = list(dict.fromkeys(name for (found,) in keys for name in found))
        paths = [f'$."{name}"' for name in names]
        texts = connection.sql(
            "SELECT json_extract(config, $paths) FROM configs", params={"paths": paths}
        ).to_arrow_table()
    columns: dict[str, pa.Array] = {}
    for place, name in enumerate(names):
        coded = pc.list_element(texts.column(0).combine_chunks(), place).dictionary_encode()
        settings = [
            {} if text is None else flat_settings(f'{{"{name}":{text}}}')
            for text in coded.dictionary.to_pylist()
        ]
        for path in dict.fromkeys(path for found in settings for path in found):
            columns[path] = _column([found.get(path) for found in settings]).take(coded.indices)
    return columns


def _column(values: list[Any]) -> pa.Array:
    """Returns the values of a setting as numbers or booleans if all of them are, else as text."""
    kinds = set(map(type, values)) - {type(None)}
    if kinds == {bool}:
        return pa.array(values, pa.bool_())
    if kinds == {int}:
        return pa.array(values, pa.int64())
    if kinds and kinds <= {int, float}:
        return pa.array(values, pa.float64())
    if not kinds <= {str}:
        values = [
            value if value is None or isinstance(value, str) else _text(value) for value in values
        ]
    return pa.array(values, pa.string())


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(canonical(value))


def _explained(message: str, sql: str, connection: duckdb.DuckDBPyConnection) -> str:
    """Returns DuckDB's message, the tables, and columns with names similar to missing ones."""
    found = connection.execute(
        "SELECT DISTINCT column_name FROM information_schema.columns ORDER BY 1"
    ).fetchall()
    columns = [name for (name,) in found]
    lines = [f"query: {message.strip()}", f"Tables: {', '.join(TABLES)}"]
    if "not found" in message:
        near = _near(sql, columns)
        if near:
            lines.append("Similar columns: " + ", ".join(near))
        if any("." in name for name in near):
            lines.append(
                "Write names with dots in double quotes: "
                + " ".join(f'"{name}"' for name in near if "." in name)
            )
    return "\n".join(lines)


def _near(sql: str, columns: Iterable[str]) -> list[str]:
    """Returns the columns whose name, or its last part, is similar to a name in the statement."""
    by_name = {name.lower(): name for name in columns}
    by_name |= {name.lower().rpartition(".")[2]: name for name in columns if "." in name} | by_name
    near: dict[str, None] = {}
    for word in re.findall(r"[A-Za-z_][A-Za-z0-9_.]*", sql):
        if word in by_name.values():
            near |= {word: None} if "." in word else {}
        else:
            near |= dict.fromkeys(
                by_name[match]
                for match in difflib.get_close_matches(word.lower(), by_name, n=3, cutoff=0.75)
            )
    return list(near)
