"""The rows of the trial log as dataclasses, and the Arrow schemas derived from them.

Changing a row changes the format of the log: raise `SCHEMA_VERSION`, and only add fields that may
be None, so that older logs stay readable.
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
"""COCO's average precisions, in [0, 1]; null if nothing was evaluated, or no object has that
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
"""Events in the order of a trial's life: the last one of an attempt decides the trial's state.
`included` undoes `excluded`."""

# A clock that is set back must not reorder the rows of one process. So time is measured from the
# start of the process with the monotonic clock, unless the system clock is ahead of that. The
# monotonic clock is read first: read second, it would lag behind by the microseconds in between.
_START = time.monotonic(), datetime.now(UTC)


def utc_now() -> datetime:
    """Returns the time in UTC. It does not go back within a process if the system clock is set
    back.
    """
    ticks, start = _START
    return max(datetime.now(UTC), start + timedelta(seconds=time.monotonic() - ticks))


def later_than(known: datetime) -> datetime:
    """Returns the time, but at least one microsecond after a known time: a row written now must
    sort after it, whatever the clocks of different nodes say.
    """
    return max(utc_now(), known + timedelta(microseconds=1))


@dataclass(frozen=True, kw_only=True)
class TrialEvent:
    """A change of a trial's state, with the trial's settings and progress."""

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
    """Time of the event, UTC."""
    role: Role = "student"
    """A `teacher` is trained for the students and excluded from all comparisons."""
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
    """Epoch of the highest AP. It is shown beside the result, never as the result: choosing the
    best epoch on the evaluation images would be biased."""
    best_AP: float | None = None  # noqa: N815 - the metric is called AP
    seconds: float | None = None
    """Training time so far, evaluation included, over all attempts."""
    parameters: str | None = None
    """The draw of the search as JSON, {path: value}."""
    trials_known: int | None = None
    """Number of ended trials that the sampler knew when it suggested this one."""
    data_id: str | None = None
    """Fingerprint of the data set."""
    teacher_id: str | None = None
    """Key of the teacher's trial, or the identity of its weights."""
    failure_kind: str | None = None
    """`non_finite_loss`, `not_calibrated`, `out_of_memory`, `bad_data`, `bad_input` or `error`;
    `crash` or `hang` if a process was lost. For an `interrupted` attempt that another one resumes:
    `hang` or `out_of_memory`."""
    reason: str | None = None
    """Why it failed, was interrupted, stopped, cancelled, excluded or restarted; one sentence."""
    traceback: str | None = None
    weights: str | None = None
    """Path of the student's weights, relative to the storage; null if they are not kept."""
    commit: str | None = None
    """Commit of the code that ran."""
    dirty: bool | None = None
    """Whether that code had uncommitted changes."""
    versions: Mapping[str, str] | None = None
    """Versions of the packages that matter."""
    host: str | None = None
    device: str | None = None
    """Name of the GPU or CPU."""
    num_gpus: float | None = None
    """GPUs that the attempt holds; null if unknown."""
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        assert self.event in EVENTS, self.event
        assert self.attempt >= 1, self.attempt
        assert self.time.tzinfo is not None, (
            "times in the log are UTC; a naive time would be read as a different one"
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
    """Metrics of this epoch; null if it was not evaluated."""
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
    """The same terms with their weights, as they are added up."""
    gradient_norms: Mapping[str, float] | None = None
    """Gradient norms at the FPN outputs, of the detection loss and the distillation loss."""
    extras: Mapping[str, float] | None = None
    """Other numbers, such as the scale of each review link, the shares of loaded keys, and the
    student's size."""
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
    """Peak GPU memory; null without a GPU."""
    first_batch_hash: str | None = None
    """Hash of the epoch's first batch. It is equal in trials that train on the same images in the
    same order, as paired comparisons assume."""


@dataclass(frozen=True, kw_only=True)
class ArmRow:
    """A trial that a study uses, even if another study ran it. Written before launch."""

    study: str
    key: str
    arm: str
    """Name of the arm, such as `baseline` or `review=off`; in a search, such as `trial-0007`."""
    seed: int = 0
    parameters: str | None = None
    """Changes to the study's base trial, as JSON {path: value}."""
    study_config: str | None = None
    """The study as JSON, as returned by `kdr.config.study.study_yaml`."""
    time: datetime = field(default_factory=utc_now)
    levels: str | None = None
    """Level of each factor of an ablation's arm, as JSON {factor: level}, `baseline` if unchanged;
    {} in the design `arms`. Null outside of ablations."""
    is_reference: bool | None = None
    """Whether the other arms of the ablation are compared with this one."""


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
    """Returns the Arrow schema of a row class. A field that may be None is nullable, and may be
    missing in files of older versions.
    """
    columns = []
    for name, hint in typing.get_type_hints(row_class).items():
        nullable = type(None) in typing.get_args(hint)
        kind = (
            next(part for part in typing.get_args(hint) if part is not type(None))
            if nullable
            else hint
        )
        # literals are stored as strings: a newer version may add values, and a reader ignores those
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
    """Returns rows of one class as an Arrow table."""
    schema = SCHEMAS[_NAMES[type(rows[0])]]
    columns = [
        pa.array([_plain(getattr(row, name)) for row in rows], schema.field(name).type)
        for name in schema.names
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _plain(value: Any) -> Any:
    return list(value.items()) if isinstance(value, Mapping) else value


def to_events(table: pa.Table) -> list[TrialEvent]:
    """Returns rows of the table `trials` as events."""
    return [TrialEvent(**row) for row in table.to_pylist(maps_as_pydicts="strict")]
