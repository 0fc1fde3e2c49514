"""Appends to the trial log: one new Parquet file per flush, so that many processes can append."""

import os
import platform
import re
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime

import pyarrow as pa
import pyarrow.parquet as pq

from kdr.results.schema import (
    ArmRow,
    EpochRow,
    Row,
    TableName,
    TrialEvent,
    later_than,
    to_table,
    utc_now,
)
from kdr.storage.files import store
from kdr.storage.layout import Storage

FLUSH_EVERY_S = 5.0
"""Longest time between two flushes of epoch rows."""


class LogWriter:
    """Appends the rows of one study to the log. As a context manager, it flushes at the end.

    Args:
        storage: where the log is.
        study: the study's name.
        flush_every_s: longest time between two flushes of epoch rows; each flush writes a file.
        after: time of the newest arm in the log. Readers take the newest arms for those of the
            present study file, so new arms must not seem older, even if the system clock was set
            back.
    """

    def __init__(
        self,
        storage: Storage,
        study: str,
        *,
        flush_every_s: float = FLUSH_EVERY_S,
        after: datetime | None = None,
    ) -> None:
        self.storage = storage
        self.study = study
        self.flush_every_s = flush_every_s
        self.after = after
        self._waiting: list[EpochRow] = []
        self._flushed_at = time.monotonic()

    def event(self, event: TrialEvent) -> None:
        """Writes an event at once, after the waiting epoch rows.

        Raises:
            StorageError: if the file cannot be written.
        """
        self.flush()  # first: a reader that sees the end of a trial must also see its epochs
        self._append("trials", [event])

    def epoch(self, row: EpochRow) -> None:
        """Adds an epoch's row, and writes all waiting rows if the last flush was long enough ago.

        Raises:
            StorageError: if the file cannot be written; the rows wait for the next flush.
        """
        self._waiting.append(row)
        if time.monotonic() - self._flushed_at >= self.flush_every_s:
            self.flush()

    def arms(self, rows: Iterable[ArmRow]) -> None:
        """Writes the trials that the study uses, at once.

        Raises:
            StorageError: if the file cannot be written.
        """
        late = [
            (
                row
                if self.after is None or row.time > self.after
                else replace(row, time=later_than(self.after))
            )
            for row in rows
        ]
        self._append("arms", late)

    def flush(self) -> None:
        """Writes the waiting epoch rows.

        Raises:
            StorageError: if the file cannot be written; the rows keep waiting.
        """
        self._append("epochs", self._waiting)
        self._waiting = []
        self._flushed_at = time.monotonic()

    def __enter__(self) -> "LogWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()

    def _append(self, name: TableName, rows: Sequence[Row]) -> None:
        if not rows:
            return
        assert all(row.study == self.study for row in rows), (
            f"this writer is for rows of {self.study}"
        )
        # a new file each time: Parquet cannot be appended to, and no other process writes this name
        path = self.storage.fragments(name, self.study) / fragment_name()
        store(path, lambda aside: write_fragment(to_table(rows), os.fspath(aside)))


def fragment_name() -> str:
    """Returns a unique file name that sorts by time."""
    host = re.sub(r"[^A-Za-z0-9]+", "-", platform.node()) or "host"
    return f"part-{utc_now():%Y%m%dT%H%M%S.%fZ}-{host}-{os.getpid()}-{uuid.uuid4().hex[:8]}.parquet"


def write_fragment(table: pa.Table, path: str) -> None:
    """Writes one Parquet file of the log, with the metadata by which readers recognise it."""
    # statistics and dictionaries double the time to write and read a file of a few rows
    many = table.num_rows >= 100
    pq.write_table(
        table,
        path,
        compression="zstd",
        use_dictionary=many,
        write_statistics=many,
        write_page_checksum=True,
    )
