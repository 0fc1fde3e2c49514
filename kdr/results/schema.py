"""The rows of the trial log, as frozen dataclasses, and the Arrow schema of each, derived from its
fields.

A change of a row is a change of the format: raise `SCHEMA_VERSION`, and only ever add fields that
may be None, so that older logs stay readable.
"""

import time
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import pyarrow as pa

SCHEMA_VERSION = 3
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
"""COCO's average precisions, in [0, 1]; null where nothing was evaluated or no object has that
size."""

Event = Literal[
    "planned",
    "started",
    "resumed",
    "interrupted",
    "failed",
    "stopped_early",
    "completed",
    "cancelled",
    "excluded",
    "included",
]
Role = Literal["student", "teacher"]
EVENTS: tuple[str, ...] = typing.get_args(Event)
"""In the order of a trial's life, by which the last event of an attempt is found. `included` undoes
`excluded`."""

_BEGUN = datetime.now(UTC), time.monotonic()


def utc_now() -> datetime:
    """The time, in UTC. In a process it goes on where the machine's clock is set back."""
    begun, ticks = _BEGUN
    return max(datetime.now(UTC), begun + timedelta(seconds=time.monotonic() - ticks))


def later_than(known: datetime) -> datetime:
    """The time, or the first instant after one that is known: what is written now came later,
    whatever the clocks say.
    """
    return max(utc_now(), known + timedelta(microseconds=1))


@dataclass(frozen=True, kw_only=True)
class TrialEvent:
    """One change of a trial's state; with it, what the trial is and what it has reached."""

    study: str
    """The study that ran the trial."""
    key: str
    """The trial's key."""
    event: Event
    """What happened."""
    config: str
    """The resolved TrialConfig as JSON."""
    attempt: int = 1
    """Counts from 1; a resumed or repeated trial is the next attempt."""
    time: datetime = field(default_factory=utc_now)
    """When it happened, UTC."""
    role: Role = "student"
    """A `teacher` is trained for the students and is not part of any comparison."""
    seed: int = 0
    """The trial's seed."""
    epoch: int | None = None
    """Last finished epoch, from 1."""
    AP: float | None = None
    """Metrics of the last evaluated epoch."""
    AP50: float | None = None
    AP75: float | None = None
    APs: float | None = None
    APm: float | None = None
    APl: float | None = None
    best_epoch: int | None = None
    """Epoch of the highest AP; told beside the result, never as the result."""
    best_AP: float | None = None  # noqa: N815 - the metric is called AP
    seconds: float | None = None
    """Training time so far, evaluation included, over all attempts."""
    parameters: str | None = None
    """The draw of the search as JSON, {path: value}."""
    trials_known: int | None = None
    """How many ended trials the sampler knew when it suggested this one."""
    data_id: str | None = None
    """Fingerprint of the data set."""
    teacher_id: str | None = None
    """Key of the teacher's trial, or the identity of its weights."""
    failure_kind: str | None = None
    """`non_finite_loss`, `not_calibrated`, `out_of_memory`, `bad_data`, `bad_input` or `error`;
    where a process was lost, `crash` or `hang`. Of an attempt that is `interrupted` and goes on in
    another: `hang` or `out_of_memory`."""
    reason: str | None = None
    """Why it failed, was interrupted, stopped, cancelled, excluded, or begun anew, one sentence."""
    traceback: str | None = None
    weights: str | None = None
    """The student's weights, relative to the storage; null where they are not kept."""
    commit: str | None = None
    """Commit of the code that ran."""
    dirty: bool | None = None
    """Whether that code had changes that were not committed."""
    versions: Mapping[str, str] | None = None
    """Versions of the packages that matter."""
    host: str | None = None
    device: str | None = None
    """Name of the GPU or CPU."""
    num_gpus: float | None = None
    """GPUs that the attempt holds; null where nothing says so."""
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        assert self.event in EVENTS, self.event
        assert self.attempt >= 1, self.attempt
        assert self.time.tzinfo is not None, (
            "times of the log are UTC; a naive one would be read as another instant"
        )


@dataclass(frozen=True, kw_only=True)
class EpochRow:
    """One finished epoch of one attempt at a trial."""

    study: str
    key: str
    attempt: int
    epoch: int
    """From 1."""
    step: int
    """Optimisation steps since the start of the trial."""
    time: datetime = field(default_factory=utc_now)
    AP: float | None = None
    """Metrics of this epoch; null where it was not evaluated."""
    AP50: float | None = None
    AP75: float | None = None
    APs: float | None = None
    APm: float | None = None
    APl: float | None = None
    ap_per_class: Mapping[str, float] | None = None
    """AP by category name."""
    losses: Mapping[str, float] | None = None
    """Mean of every loss term over the epoch, unweighted."""
    weighted_losses: Mapping[str, float] | None = None
    """The same terms as they enter the sum."""
    gradient_norms: Mapping[str, float] | None = None
    """Norms at the FPN outputs, of the detection and of the distillation loss."""
    extras: Mapping[str, float] | None = None
    """Further numbers: of the methods, such as the scale of each review link, shares of keys
    loaded, the student's size."""
    lr: float | None = None
    """Learning rate at the end of the epoch."""
    seconds: float | None = None
    """Training time of this epoch, without evaluation."""
    eval_seconds: float | None = None
    images_per_s: float | None = None
    """Training throughput over all workers."""
    images_seen: int | None = None
    """Training images since the start of the trial."""
    peak_memory_bytes: int | None = None
    """Most GPU memory in use; null without a GPU."""
    first_batch_hash: str | None = None
    """Hash of the epoch's first batch: equal for trials that are truly paired."""


@dataclass(frozen=True, kw_only=True)
class ArmRow:
    """A trial that a study uses, whichever study ran it; written before launch."""

    study: str
    key: str
    arm: str
    """Name of the arm, such as `baseline` or `review=off`; trials of a search have names such as
    `trial-0007`."""
    seed: int = 0
    parameters: str | None = None
    """What sets this trial apart from the study's base, as JSON {path: value}."""
    study_config: str | None = None
    """The study as JSON, as `kdr.config.study.study_yaml` gives it."""
    time: datetime = field(default_factory=utc_now)
    levels: str | None = None
    """Of an ablation's arm: the level of each factor as JSON {factor: level}, `baseline` where it
    is unchanged; {} for an arm that is no combination of levels. Null for a trial that is no arm of
    an ablation."""
    is_reference: bool | None = None
    """Whether it is the ablation's arm with which the others are compared."""


Row = TrialEvent | EpochRow | ArmRow
TableName = Literal["trials", "epochs", "arms"]

_ARROW: dict[Any, Any] = {
    str: pa.string(),
    int: pa.int64(),
    float: pa.float64(),
    bool: pa.bool_(),
    datetime: pa.timestamp("us", tz="UTC"),
    Mapping[str, float]: pa.map_(pa.string(), pa.float64()),
    Mapping[str, str]: pa.map_(pa.string(), pa.string()),
}


def schema_of(row_class: type[Row]) -> pa.Schema:
    """The Arrow schema of a row class: a field that may be None is nullable, and may be missing in
    a file.
    """
    columns = []
    for name, hint in typing.get_type_hints(row_class).items():
        nullable = type(None) in typing.get_args(hint)
        kind = (
            next(part for part in typing.get_args(hint) if part is not type(None))
            if nullable
            else hint
        )
        arrow = pa.string() if typing.get_origin(kind) is Literal else _ARROW[kind]
        columns.append(pa.field(name, arrow, nullable=nullable))
    return pa.schema(
        columns,
        metadata={"kdr.table": _NAMES[row_class], "kdr.schema_version": str(SCHEMA_VERSION)},
    )


_NAMES: dict[type[Row], TableName] = {TrialEvent: "trials", EpochRow: "epochs", ArmRow: "arms"}
SCHEMAS: dict[TableName, pa.Schema] = {
    name: schema_of(row_class) for row_class, name in _NAMES.items()
}
"""The Arrow schema of each table of the log."""


def to_table(rows: typing.Sequence[Row]) -> pa.Table:
    """Rows of one class as an Arrow table with that class's schema."""
    schema = SCHEMAS[_NAMES[type(rows[0])]]
    columns = [
        pa.array([_plain(getattr(row, name)) for row in rows], schema.field(name).type)
        for name in schema.names
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _plain(value: Any) -> Any:
    return list(value.items()) if isinstance(value, Mapping) else value


def to_events(table: pa.Table) -> list[TrialEvent]:
    """Rows of the table `trials` as events."""
    return [TrialEvent(**row) for row in table.to_pylist(maps_as_pydicts="strict")]
