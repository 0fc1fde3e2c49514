"""Messages between a gang's owner and its workers, through mailboxes in a small process.

Each rank has a mailbox, and so has the owner. An idle worker waits for its mailbox, not in a
collective: over NCCL a collective keeps the GPU busy while it waits, and fails at the process
group's timeout (half an hour).
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import ray
from ray.actor import ActorHandle

from kdr.config.trial import Trial
from kdr.training.metrics import EpochMetrics


@dataclass(frozen=True)
class Up:
    """The workers are ready for their first trial."""

    placement_group: str
    """Hexadecimal id of the group that holds their resources."""
    where: Mapping[str, str]
    """Columns of the log: host and device of rank 0."""


@dataclass(frozen=True)
class Stop:
    """The owner's answer to an epoch: whether the trial ends here."""

    now: bool


@dataclass(frozen=True)
class Failed:
    """A trial failed before its last epoch."""

    error: Exception
    by_all: bool
    """Whether every rank left the trial at the same step and is ready for the next one. If not, the
    others hang in a collective, and all workers must be ended."""


@dataclass(frozen=True)
class Lost:
    """The workers ended, or one of them failed in a way that says nothing about the trial."""

    reason: str


Order = Trial | Stop
"""From the owner to every rank."""
Report = Up | EpochMetrics | Failed | Lost
"""From the workers to the owner."""


@dataclass(frozen=True)
class GangChannel:
    """A handle that can be sent to other processes. Its mailboxes end with the process that opened
    it.
    """

    _actor: "ActorHandle[_Mailboxes]"

    @classmethod
    def open(cls, num_ranks: int) -> "GangChannel":
        """Starts the process with the mailboxes."""
        # no CPU: it only passes messages, and trials need all CPUs of the cluster
        mailboxes = ray.remote(num_cpus=0)(_Mailboxes).remote(num_ranks)
        return cls(cast("ActorHandle[_Mailboxes]", mailboxes))

    def send(self, order: Order) -> None:
        """Puts an order into the mailbox of every rank."""
        ray.get(self._actor.send.remote(order))

    def next_trial(self, rank: int) -> Trial:
        """Waits for the next trial of a rank."""
        order = self._next_order(rank)
        assert isinstance(order, Trial), order
        return order

    def is_stopped(self, rank: int) -> bool:
        """Waits for the owner's answer to an epoch; returns whether the trial ends here."""
        order = self._next_order(rank)
        assert isinstance(order, Stop), order
        return order.now

    def report(self, report: Report) -> None:
        """Puts a report into the owner's mailbox."""
        ray.get(self._actor.report.remote(report))

    def next_report(self) -> Report:
        """Waits for the next report."""
        return cast("Report", ray.get(self._actor.next_report.remote()))

    def close(self) -> None:
        """Ends the process; everything that waits for a mailbox raises an error."""
        ray.kill(self._actor)

    def _next_order(self, rank: int) -> Order:
        return cast("Order", ray.get(self._actor.receive.remote(rank)))


class _Mailboxes:
    # All methods are async: Ray then runs many at a time, and a rank that waits for its mailbox
    # does not keep the others, or the owner, from theirs.

    def __init__(self, num_ranks: int) -> None:
        self._of_ranks: list[asyncio.Queue[Order]] = [asyncio.Queue() for _ in range(num_ranks)]
        self._of_owner: asyncio.Queue[Report] = asyncio.Queue()

    async def send(self, order: Order) -> None:
        for mailbox in self._of_ranks:
            await mailbox.put(order)

    async def receive(self, rank: int) -> Order:
        return await self._of_ranks[rank].get()

    async def report(self, report: Report) -> None:
        await self._of_owner.put(report)

    async def next_report(self) -> Report:
        return await self._of_owner.get()
