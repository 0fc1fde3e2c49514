"""Rows of the log and their Arrow schemas."""

import math
from datetime import datetime

import pyarrow as pa
import pytest

from kdr.results.schema import SCHEMA_VERSION, SCHEMAS, EpochRow, TrialEvent, to_events, to_table


def test_an_event_survives_writing_and_reading() -> None:
    event = TrialEvent(
        study="s",
        key="k",
        event="failed",
        config="{}",
        attempt=2,
        AP=math.pi,
        versions={"torch": "2"},
        dirty=False,
        reason="ü",
    )
    assert to_events(to_table([event])) == [event]


def test_columns_of_nulls_are_typed() -> None:
    table = to_table([TrialEvent(study="s", key="k", event="planned", config="{}")])
    assert table.schema.equals(SCHEMAS["trials"], check_metadata=True)
    assert table["AP"].type == pa.float64()
    assert table["versions"].type == pa.map_(pa.string(), pa.string())


def test_a_time_without_a_time_zone_is_refused() -> None:
    with pytest.raises(AssertionError, match="times in the log are UTC"):
        TrialEvent(study="s", key="k", event="planned", config="{}", time=datetime(2026, 1, 1))


def test_maps_of_losses_keep_their_order_and_values() -> None:
    row = EpochRow(study="s", key="k", attempt=1, epoch=1, step=1, losses={"b": 1.0, "a": 2.0})
    assert to_table([row])["losses"].to_pylist() == [[("b", 1.0), ("a", 2.0)]]


def test_the_format_changes_only_with_its_version() -> None:
    """Logs are read for years: a change of a column needs a new SCHEMA_VERSION, and to be added
    here.
    """
    text = {
        name: " ".join(
            f"{column.name}:{column.type}{'' if column.nullable else '!'}" for column in schema
        )
        for name, schema in SCHEMAS.items()
    }
    metrics = "AP:double AP50:double AP75:double APs:double APm:double APl:double"
    number_map = "map<string, double>"
    assert SCHEMA_VERSION == 3
    assert (
        text["arms"] == "study:string! key:string! arm:string! seed:int64! parameters:string "
        "study_config:string time:timestamp[us, tz=UTC]! levels:string is_reference:bool"
    )
    assert (
        text["epochs"]
        == "study:string! key:string! attempt:int64! epoch:int64! step:int64! time:timestamp[us, "
        f"tz=UTC]! {metrics} ap_per_class:{number_map} losses:{number_map} "
        f"weighted_losses:{number_map} gradient_norms:{number_map} extras:{number_map} "
        "lr:double seconds:double eval_seconds:double images_per_s:double images_seen:int64 "
        "peak_memory_bytes:int64 first_batch_hash:string"
    )
    assert (
        text["trials"] == "study:string! key:string! event:string! config:string! attempt:int64! "
        f"time:timestamp[us, tz=UTC]! role:string! seed:int64! epoch:int64 {metrics} "
        "best_epoch:int64 best_AP:double seconds:double parameters:string trials_known:int64 "
        "data_id:string teacher_id:string failure_kind:string reason:string traceback:string "
        "weights:string commit:string dirty:bool versions:map<string, string> host:string "
        "device:string num_gpus:double schema_version:int64!"
    )
