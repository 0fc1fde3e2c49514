"""SQL over the trial log: DuckDB over Arrow tables in memory, with no way to a file, so that no
statement can harm the log.

Tables: `trials`, one row per study and trial with its current state and every setting as a column;
`epochs`, without epochs that a later attempt has done again; `arms`; and `events`, everything that
happened.
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
"""Columns of the epochs that no trial's state depends on."""
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
    """The table `epochs` without some of its columns; notes whether a statement needs one of those.

    DuckDB asks a dataset for the columns that a statement needs, whatever its form.
    """

    schema = SCHEMAS["epochs"]

    def __init__(self, epochs: pa.Table) -> None:
        self._rows = ds.dataset(epochs)
        self.is_too_narrow = False

    def scanner(self, columns: list[str] | None = None, **options: Any) -> ds.Scanner:
        """A scan of some columns, by default of all.

        Raises:
            pyarrow.ArrowInvalid: if one that is not here is among them, or is filtered by.
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
    """The answer of one SQL statement over the log. Nothing outside memory can be read by it, and
    nothing changed.

    Args:
        storage: where the log lies.
        sql: the statement.
        on_log: gets the log as it was read, also where the statement is refused.

    Raises:
        QueryError: if DuckDB refuses the statement, or it answers with no rows and columns at all.
    """
    # a guess at what is needed saves most of the reading, and where it is wrong, as for `SELECT *`,
    # everything is read
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
    """A DuckDB connection with the log's tables as they are now, its access to files shut and its
    settings locked.
    """
    log = read_log(storage)
    return _connection(log, log.current_epochs)


def trials_table(log: Log) -> pa.Table:
    """One row per study and trial: its current state, its metrics, and every setting as a column
    named by its path.

    A trial that several studies use has a row in each of them, with the same state; `ran_in` names
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
    # DuckDB's column names do not tell upper from lower case; the setting `seed` is the column
    # `seed`
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
                return QueryError(
                    'query: needs a statement that gives rows, such as "SELECT key, AP FROM trials"'
                )
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
    """By study and key the arms that the trial is, in the order in which they came."""
    rows = first_of_each(log.arms.sort_by("time"), "study", "key", "arm").sort_by("row")
    names: dict[tuple[str, str], list[str]] = {}
    for study, key, arm in zip(
        *(rows[name].to_pylist() for name in ("study", "key", "arm")), strict=True
    ):
        names.setdefault((study, key), []).append(arm)
    return {pair: " and ".join(found) for pair, found in names.items()}


def _setting_columns(configs: pa.ChunkedArray) -> dict[str, pa.Array]:
    """By path a column of the setting's values.

    Most trials of a log differ in a setting or two: each section of a config, such as `data`, is
    read once for all that share it.
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
    """Values of one setting as numbers or truth values where all are, as text where any is text or
    a list.
    """
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
    """DuckDB's message, then what exists: the tables, and columns with names near those that were
    not found.
    """
    found = connection.execute(
        "SELECT DISTINCT column_name FROM information_schema.columns ORDER BY 1"
    ).fetchall()
    columns = [name for (name,) in found]
    lines = [f"query: {message.strip()}", f"Tables: {', '.join(TABLES)}"]
    if "not found" in message:
        near = _near(sql, columns)
        if near:
            lines.append("Columns with such names: " + ", ".join(near))
        if any("." in name for name in near):
            lines.append(
                "Names with dots need double quotes: "
                + " ".join(f'"{name}"' for name in near if "." in name)
            )
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
            near |= dict.fromkeys(
                by_name[match]
                for match in difflib.get_close_matches(word.lower(), by_name, n=3, cutoff=0.75)
            )
    return list(near)
