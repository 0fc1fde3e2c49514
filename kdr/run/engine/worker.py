"""The loop of a gang's worker: trains one trial after another, in step with the other ranks."""

import contextlib
import socket
import traceback
from dataclasses import dataclass

import torch
from ray.train.torch import get_device
from ray.util import get_current_placement_group

from kdr.config.trial import Trial
from kdr.errors import KdrError, TrialFailure
from kdr.run.cluster.provenance import provenance
from kdr.run.engine.channel import Failed, GangChannel, Lost, Up
from kdr.run.engine.engine import Epochs
from kdr.run.engine.watchdog import Watchdog
from kdr.storage.layout import Storage
from kdr.training.fit import fit, untracked
from kdr.training.ranks import Ranks
from kdr.training.shared_parts import SharedParts

_SEEN_BY_ALL = ("non_finite_loss", "not_calibrated")
"""Failures that all ranks find at the same step, because they gather losses and gradients."""


@dataclass(frozen=True)
class WorkerSettings:
    """Settings that every worker of a gang receives."""

    channel: GangChannel
    storage: Storage
    threads: int
    """CPU threads of torch."""
    loader_workers: int
    """Processes that load images."""
    silence_s: float
    """Seconds without a batch after which a worker ends itself, and the gang with it."""


def serve(given: dict[str, WorkerSettings]) -> None:
    """Trains one trial after another until the process is ended: Ray Train's training function.

    Data set and teacher stay open between trials. Rank 0 reports each epoch; all ranks then wait
    for the owner's answer.

    Args:
        given: the settings, under "settings"; Ray Train passes a dictionary.
    """
    settings = given["settings"]
    torch.set_num_threads(settings.threads)
    ranks, shared = Ranks.joined(), SharedParts(settings.storage)
    if ranks.is_first:
        group = get_current_placement_group()
        assert group is not None
        where = {"host": socket.gethostname(), "device": provenance()["device"]}
        settings.channel.report(Up(group.id.hex(), where))
    while True:
        trial = settings.channel.next_trial(ranks.rank)
        _train(trial, settings, ranks, shared)


def _train(trial: Trial, settings: WorkerSettings, ranks: Ranks, shared: SharedParts) -> None:
    """Trains one trial; returns once it has ended on every rank, raises if this worker must end."""
    channel = settings.channel
    try:
        with contextlib.closing(_watched_epochs(trial, settings, ranks, shared)) as epochs:
            for metrics in epochs:
                if ranks.is_first:
                    channel.report(metrics)
                if channel.is_stopped(ranks.rank):
                    break
    except TrialFailure as failure:
        by_all = failure.kind in _SEEN_BY_ALL
        # one report is enough if all ranks are here; otherwise no other rank will report
        if not by_all or ranks.is_first:
            channel.report(Failed(failure, by_all))
        if not by_all:
            raise
    except KdrError as error:
        channel.report(Failed(error, by_all=False))
        raise
    except Exception:
        # most often because another rank died in the middle of a collective
        last_line = traceback.format_exc().strip().splitlines()[-1]
        channel.report(Lost(f"rank {ranks.rank}: {last_line}"))
        raise


def _watched_epochs(
    trial: Trial, settings: WorkerSettings, ranks: Ranks, shared: SharedParts
) -> Epochs:
    watchdog = Watchdog(settings.storage, trial.key, settings.silence_s, ranks.rank)
    return watchdog.over(
        fit(
            trial,
            storage=settings.storage,
            shared=shared,
            device=get_device(),
            loader_workers=settings.loader_workers,
            track=watchdog.watched(untracked),
            ranks=ranks,
        )
    )
