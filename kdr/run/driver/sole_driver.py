"""One driver per study: each writes a claim into the storage and keeps it alive, so that no two run
one study at once.

A claim is a file of its own, and whoever sees another one that lives does not begin. So nothing is
asked of the storage but that a file which is there is listed: no lock, no rename that fails where
the target exists. That holds on a folder of this machine and in an object store. On a network
folder a listing may be some seconds old; writing the own claim first makes it a new one.
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
"""Seconds between two signs of life."""
DEAD_AFTER_S = 60.0
"""A driver on another machine that has shown no sign of life for so long is dead: watched that
long, since clocks differ."""


def end_in_good_order() -> None:
    """Ends this run as SIGTERM does: no new trial starts, and the epochs that run may end."""
    os.kill(os.getpid(), signal.SIGTERM)


@dataclass(frozen=True)
class Claim:
    """What one driver has written."""

    host: str
    """Name of its machine, for people."""
    pid: int
    machine: str
    """Tells machines, their starts, and containers on them apart."""
    born: str
    """When the process began, as its machine counts: another process may get its id later."""
    since: str
    """When it claimed the study, for people."""
    held: bool = False
    """Whether it runs the study; before that it looks whether another one does."""
    beat: int = 0
    """Counts signs of life."""
    name: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Of its file."""

    @property
    def is_here(self) -> bool:
        """Whether it was written by a process of this machine, which can be looked at."""
        return bool(self.machine) and self.machine == _machine()

    @property
    def has_died_here(self) -> bool:
        """Whether it is one of this machine's, and its process is no more."""
        return self.is_here and _born(self.pid) != self.born

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


@contextlib.contextmanager
def sole_driver(
    storage: Storage,
    study: str,
    *,
    on_waiting: Callable[[str], None],
    on_lost: Callable[[], None] = end_in_good_order,
) -> Iterator[str]:
    """A context in which this process is the only one that runs a study; yields the name of its
    claim.

    Args:
        storage: where the study lies.
        study: its name.
        on_waiting: is told why it takes long, if it does.
        on_lost: is called, from a thread, if another driver has taken the study over, since this
            one showed no sign of life.

    Raises:
        BusyError: if another one runs it.
        StorageError: if the storage cannot be written.
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
        # a claim that stays is followed like that of a dead driver
        with contextlib.suppress(OSError, StorageError):
            claims.withdraw()


@dataclass(frozen=True)
class _Seen:
    """The last new sign of life of another driver."""

    beat: int
    at: float
    """By the clock of whoever watches."""
    has_beaten: bool
    """Whether there was one before it."""


class Claims:
    """The claims to one study, of which one is this process's own, once it has been taken.

    Args:
        folder: where they lie.
        study: its name.
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
        """Claims the study for this process, once no other claim lives."""
        random, told = Random(self.own.name), False  # noqa: S311 - so that two that begin at once do not meet again
        self._folder.remove_orphans()
        self._write(self.own)
        while others := self.living():
            if holder := next(
                (claim for claim in others if claim.held and self._is_alive(claim)), None
            ):
                self.withdraw()
                raise BusyError(self._refusal(holder))
            waiting = [claim for claim in others if claim.held]
            if waiting and not told:
                told = True
                on_waiting(
                    f"Waiting up to {DEAD_AFTER_S:.0f} s for a sign of life of {waiting[0]}, which "
                    "ran this study"
                )
            if not waiting and any(claim.name < self.own.name for claim in others):
                self.withdraw()  # of two that look at once, one goes first
                time.sleep(random.uniform(0.2, 1.0))
            else:
                time.sleep(min(1.0, BEAT_S / 4))
            self.own = dataclasses.replace(self.own, beat=self.own.beat + 1)
            self._write(self.own)
        self.own = dataclasses.replace(self.own, held=True)
        self._write(self.own)

    def withdraw(self) -> None:
        """Takes back the own claim."""
        self._path(self.own).unlink(missing_ok=True)

    def beat_until(self, over: threading.Event, on_lost: Callable[[], None]) -> None:
        """Shows signs of life until the study is over, or lost to another driver."""
        while not over.wait(BEAT_S):
            try:
                present = {claim.name: claim for claim in self._all()}
                if self.own.name not in present or any(
                    claim.held for name, claim in present.items() if name != self.own.name
                ):
                    on_lost()
                    return
                self.own = dataclasses.replace(self.own, beat=self.own.beat + 1)
                self._write(self.own)
            except (OSError, StorageError):
                continue  # whoever needs the storage says so; the next beat may reach it

    def living(self) -> list[Claim]:
        """The other claims, without those of the dead, which are removed."""
        living = []
        for claim in self._all():
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
        """Whether a claim is known to live: its process is on this machine, or has shown a sign of
        life meanwhile.
        """
        return claim.is_here or self._seen[claim.name].has_beaten

    def _all(self) -> list[Claim]:
        found = []
        for path in listed(self._folder, "*.json"):
            # one that has just been taken back, or a file that is no claim
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
            f"study: must have one driver at a time, got a second one for {self._study}: {holder} "
            f"runs it since {holder.since}. Look at it with `status {self._study}`; once that "
            "process has ended, the same command continues"
        )


def trials_of(folder: StoredPath, name: str) -> StoredPath:
    """The file in which a driver says which trials it trains, beside its claim of that name
    (`kdr.run.driver.trial_claims`).
    """
    return folder / f"{name}.trials"


def _machine() -> str:
    """Names this start of this machine, and the container; empty where that cannot be told."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}-{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return ""


def _born(pid: int) -> str:
    """When a process of this machine began, in ticks since the machine did; empty if there is no
    such process any more.
    """
    try:
        state, *values = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state in "ZX" else values[18]
