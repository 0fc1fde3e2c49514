"""What a gang's owner and its workers tell each other: a mailbox for each rank, and one for the
owner, in one small process.

An idle worker waits for its mailbox and not in a collective, which over NCCL would keep its GPU
busy and give up after half an hour.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray


@dataclass(frozen=True)
class Up:
    """The workers wait for their first trial."""

    placement_group: str
    """Hexadecimal id of the group that holds their resources."""
    where: Mapping[str, Any]
    """Columns of the log: host and device of rank 0."""


@dataclass(frozen=True)
class Stop:
    """The answer to an epoch: whether the trial ends here."""

    now: bool


@dataclass(frozen=True)
class Failed:
    """A trial is over, before its end."""

    error: Exception
    by_all: bool
    """Whether every rank has left it in the same step and waits for the next one; if not, the
    workers must be ended."""


@dataclass(frozen=True)
class Lost:
    """The workers have ended, or one of them failed in a way that says nothing about the trial."""

    reason: str


@dataclass(frozen=True)
class GangChannel:
    """A handle that can be sent to other processes. It ends with the process that opened it."""

    _actor: Any

    @classmethod
    def open(cls, num_ranks: int) -> "GangChannel":
        """Starts the process with the mailboxes."""
        return cls(ray.remote(num_cpus=0)(_Mailboxes).remote(num_ranks))

    def send(self, message: Any) -> None:
        """Puts a message into the mailbox of every rank."""
        ray.get(self._actor.send.remote(message))

    def receive(self, rank: int) -> Any:
        """Waits for the next message to a rank."""
        return ray.get(self._actor.receive.remote(rank))

    def report(self, report: Any) -> None:
        """Puts a report into the owner's mailbox."""
        ray.get(self._actor.report.remote(report))

    def next_report(self) -> Any:
        """Waits for the next report."""
        return ray.get(self._actor.next_report.remote())

    def close(self) -> None:
        """Ends the process; whoever waits for a mailbox gets an error."""
        ray.kill(self._actor)


class _Mailboxes:
    def __init__(self, num_ranks: int) -> None:
        self._of_ranks: list[asyncio.Queue[Any]] = [asyncio.Queue() for _ in range(num_ranks)]
        self._of_owner: asyncio.Queue[Any] = asyncio.Queue()

    async def send(self, message: Any) -> None:
        for mailbox in self._of_ranks:
            await mailbox.put(message)

    async def receive(self, rank: int) -> Any:
        return await self._of_ranks[rank].get()

    async def report(self, report: Any) -> None:
        await self._of_owner.put(report)

    async def next_report(self) -> Any:
        return await self._of_owner.get()
