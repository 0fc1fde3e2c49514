"""One driver per study: each process writes a claim into the storage and keeps it alive.

A claim is a file of its own, and a process that sees another live claim does not start. The storage
only has to list files that exist. No lock and no exclusive create is needed, because neither works
on every NFS server and object store. On NFS a listing may be seconds old, but writing its own claim
into the folder makes the client list it again. See docs/decisions/claims-without-a-lock.md.
"""

import contextlib
import dataclasses
import json
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from kdr.errors import BusyError, StorageError
from kdr.results.schema import utc_now
from kdr.storage.files import StoredPath, listed, store
from kdr.storage.layout import Storage

BEAT_S = 10.0
"""Seconds between two heartbeats."""
DEAD_AFTER_S = 60.0
"""A driver on another machine without a heartbeat for this many seconds is dead. The clock is that
of the process that checks: times written by another machine are not compared, because clocks
differ."""


def terminate_this_run() -> None:
    """Ends this run as SIGTERM does: no new trial starts, and running epochs may finish."""
    os.kill(os.getpid(), signal.SIGTERM)


@dataclass(frozen=True)
class Claim:
    """The content of one claim file."""

    host: str
    """Host name, for messages."""
    pid: int
    machine: str
    """Identifies the machine, its boot and the container: a pid means nothing beyond these."""
    born: str
    """Start time of the process in its machine's ticks: the pid may be reused later."""
    since: str
    """When it claimed the study, for messages."""
    held: bool = False
    """Whether its process runs the study. Until then, it is still checking for other claims."""
    beat: int = 0
    """Number of heartbeats so far."""
    name: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Name of its file. Random, so that it also decides which of two simultaneous claims wins."""

    @property
    def is_here(self) -> bool:
        """Whether a process of this machine wrote it, so that its pid can be checked."""
        return bool(self.machine) and self.machine == _machine()

    @property
    def has_died_here(self) -> bool:
        """Whether a process of this machine wrote it and has ended."""
        return self.is_here and _born(self.pid) != self.born

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


@contextlib.contextmanager
def sole_driver(
    storage: Storage,
    study: str,
    *,
    on_waiting: Callable[[str], None],
    on_lost: Callable[[], None] = terminate_this_run,
) -> Iterator[str]:
    """Makes this process the only driver of a study while the block runs; yields its claim's name.

    Args:
        storage: the study's storage.
        study: its name.
        on_waiting: receives a message if taking the claim takes long.
        on_lost: called, from a thread, if another driver has taken over the study because this
            one's heartbeats were missing.

    Raises:
        BusyError: if another driver runs the study.
        StorageError: if the storage is not writable.
    """
    claims = Claims(storage.drivers(study), study)
    claims.take(on_waiting)
    over = threading.Event()
    beating = threading.Thread(
        target=claims.beat_until, args=(over, on_lost), name="heartbeat", daemon=True
    )
    beating.start()
    try:
        yield claims.own.name
    finally:
        over.set()
        beating.join()
        # if the storage is gone, the claim stays and expires like that of a killed driver
        with contextlib.suppress(OSError, StorageError):
            claims.withdraw()


@dataclass(frozen=True)
class _Seen:
    """The latest heartbeat of another driver, as observed here."""

    beat: int
    at: float
    """Time of this process's monotonic clock when it was first seen."""
    has_beaten: bool
    """Whether an earlier heartbeat was seen: a single one may be from a process long dead."""


class Claims:
    """The claims on one study, including this process's own once it is taken.

    Args:
        folder: the folder of the claims.
        study: the study's name.
    """

    def __init__(self, folder: StoredPath, study: str) -> None:
        self._folder, self._study = folder, study
        self.own = Claim(
            host=socket.gethostname(),
            pid=os.getpid(),
            machine=_machine(),
            born=_born(os.getpid()),
            since=f"{utc_now():%Y-%m-%d %H:%M:%S} UTC",
        )
        self._seen: dict[str, _Seen] = {}

    def take(self, on_waiting: Callable[[str], None]) -> None:
        """Claims the study for this process as soon as there is no other live claim.

        It writes its own claim first and reads the others afterwards. If two processes do so at the
        same time, at least one sees the other, whatever the order of their steps.

        Raises:
            BusyError: if another driver runs the study.
            StorageError: if the storage is not writable.
        """
        random, has_reported = Random(self.own.name), False  # noqa: S311 - it only spreads retries
        self._folder.remove_orphans()
        self._write(self.own)
        while others := self.living():
            if holder := next(
                (claim for claim in others if claim.held and self._is_alive(claim)), None
            ):
                self.withdraw()
                raise BusyError(self._refusal(holder))
            waiting = [claim for claim in others if claim.held]
            # a driver of another machine that may be dead: wait for its next heartbeat
            if waiting and not has_reported:
                has_reported = True
                on_waiting(
                    f"Waiting up to {DEAD_AFTER_S:.0f} s for a heartbeat of {waiting[0]}, which "
                    "ran this study"
                )
            # none holds the study, but several want it: all but the lowest name withdraw, and come
            # back after random pauses to find the study held
            if not waiting and any(claim.name < self.own.name for claim in others):
                self.withdraw()
                time.sleep(random.uniform(0.2, 1.0))
            else:
                time.sleep(min(1.0, BEAT_S / 4))
            # counts as a heartbeat, so that a process on another machine knows this one is alive
            self.own = dataclasses.replace(self.own, beat=self.own.beat + 1)
            self._write(self.own)
        self.own = dataclasses.replace(self.own, held=True)
        self._write(self.own)

    def withdraw(self) -> None:
        """Removes this process's claim."""
        self._path(self.own).unlink(missing_ok=True)

    def beat_until(self, over: threading.Event, on_lost: Callable[[], None]) -> None:
        """Writes heartbeats until the study is over, or lost to another driver."""
        while not over.wait(BEAT_S):
            try:
                present = {claim.name: claim for claim in self.all()}
                # this process was suspended for longer than DEAD_AFTER_S, for example by a closed
                # lid, and another driver removed its claim or already runs the study
                if self.own.name not in present or any(
                    claim.held for name, claim in present.items() if name != self.own.name
                ):
                    on_lost()
                    return
                self.own = dataclasses.replace(self.own, beat=self.own.beat + 1)
                self._write(self.own)
            except (OSError, StorageError):
                continue  # the run itself reports an unreachable storage; try at the next beat

    def living(self) -> list[Claim]:
        """Returns the claims of other live processes; removes those of dead ones.

        Must be called repeatedly to notice a silent driver on another machine, since its silence is
        measured between calls.
        """
        living = []
        for claim in self.all():
            if claim.name == self.own.name:
                continue
            seen = self._seen.get(claim.name)
            if seen is None or seen.beat != claim.beat:
                seen = self._seen[claim.name] = _Seen(
                    claim.beat, time.monotonic(), has_beaten=seen is not None
                )
            is_silent = time.monotonic() - seen.at > DEAD_AFTER_S and not claim.is_here
            if claim.has_died_here or is_silent:
                trials_of(self._folder, claim.name).unlink(missing_ok=True)
                self._path(claim).unlink(missing_ok=True)
            else:
                living.append(claim)
        return living

    def _is_alive(self, claim: Claim) -> bool:
        """Returns whether a claim's process is certainly alive: it is on this machine, or at least
        two of its heartbeats were seen.
        """
        return claim.is_here or self._seen[claim.name].has_beaten

    def all(self) -> list[Claim]:
        """Returns every claim on the study, including those of dead drivers."""
        found = []
        for path in listed(self._folder, "*.json"):
            # withdrawn since the listing, or not a claim
            with contextlib.suppress(FileNotFoundError, ValueError, TypeError):
                found.append(Claim(**json.loads(path.read_text(encoding="utf-8"))))
        return found

    def _write(self, claim: Claim) -> None:
        text = json.dumps(dataclasses.asdict(claim))
        store(self._path(claim), lambda aside: aside.write_text(text, encoding="utf-8"))

    def _path(self, claim: Claim) -> StoredPath:
        return self._folder / f"{claim.name}.json"

    def _refusal(self, holder: Claim) -> str:
        return (
            f"study {self._study} is already running ({holder}, since {holder.since}). See "
            f"`kdr status {self._study}`; once that process has ended, the same command resumes"
        )


def driver_of(storage: Storage, study: str) -> Claim | None:
    """Returns the claim of the driver that runs a study; None if there is none.

    If the driver is on this machine, it is alive. On another machine it may have died: its claim
    stays until the next driver finds it silent.
    """
    claims = Claims(storage.drivers(study), study)
    return next((one for one in claims.all() if one.held and not one.has_died_here), None)


def trials_of(folder: StoredPath, name: str) -> StoredPath:
    """Returns the file of a driver's trials, beside its claim of that name; see
    `kdr.run.driver.trial_claims`.
    """
    return folder / f"{name}.trials"


def _machine() -> str:
    """Returns an identifier of this machine, its boot and the container; empty if unknown.

    A host name is not enough: containers may share it, and after a reboot pids start again. Without
    /proc (macOS) every claim is treated as another machine's, which costs DEAD_AFTER_S, not safety.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}-{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return ""


def _born(pid: int) -> str:
    """Returns a process's start time in ticks since boot; empty if it has ended."""
    try:
        # the command before the last ")" may itself contain spaces and parentheses
        state, *values = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    # zombies have ended but keep their pid; field 22 of proc_pid_stat(5) is the start time
    return "" if state in "ZX" else values[18]
