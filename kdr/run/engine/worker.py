"""What runs on every worker of a gang: one trial after another, in step with the other ranks."""

import contextlib
import socket
import traceback
from dataclasses import dataclass
from typing import Any

from kdr.config.trial import Trial
from kdr.errors import KdrError, TrialFailure
from kdr.run.engine.channel import Failed, GangChannel, Lost, Up
from kdr.storage.layout import Storage


@dataclass(frozen=True)
class WorkerSettings:
    """What every worker of a gang is given."""

    channel: GangChannel
    storage: Storage
    threads: int
    """CPU threads of torch."""
    loader_workers: int
    """Processes that load images."""
    silence_s: float
    """Seconds without a batch after which a worker ends itself, and the gang with it."""


def serve(given: dict[str, Any]) -> None:
    """The training function of Ray Train: trains whatever trials come, until the process is ended.

    Data set and teacher stay open between trials. Rank 0 reports each epoch; all ranks then wait to
    be told whether to go on.
    """
    import torch
    from ray.train.torch import get_device
    from ray.util import get_current_placement_group

    from kdr.run.cluster.provenance import provenance
    from kdr.training.ranks import Ranks
    from kdr.training.shared_parts import SharedParts

    settings: WorkerSettings = given["settings"]
    torch.set_num_threads(settings.threads)
    ranks, shared, device = Ranks.joined(), SharedParts(settings.storage), get_device()
    channel = settings.channel
    if ranks.is_first:
        group = get_current_placement_group()
        assert group is not None
        channel.report(
            Up(group.id.hex(), {"host": socket.gethostname(), "device": provenance()["device"]})
        )
    while True:
        _train(channel.receive(ranks.rank), settings, ranks, shared, device)


def _train(trial: Trial, settings: WorkerSettings, ranks: Any, shared: Any, device: Any) -> None:
    from kdr.run.engine.watchdog import Watchdog
    from kdr.training.fit import fit, untracked

    channel, storage = settings.channel, settings.storage
    watchdog = Watchdog(storage, trial.key, settings.silence_s, ranks.rank)
    track, loaders = watchdog.watched(untracked), settings.loader_workers
    epochs = watchdog.over(
        fit(
            trial,
            storage=storage,
            shared=shared,
            device=device,
            loader_workers=loaders,
            track=track,
            ranks=ranks,
        )
    )
    try:
        with contextlib.closing(epochs):  # type: ignore[type-var]
            for metrics in epochs:
                if ranks.is_first:
                    channel.report(metrics)
                if channel.receive(ranks.rank).now:
                    break
    except TrialFailure as failure:
        # the ranks look at their losses and gradients together; anything else has happened to this
        # one alone
        by_all = failure.kind in ("non_finite_loss", "not_calibrated")
        if not by_all or ranks.is_first:
            channel.report(Failed(failure, by_all))
        if not by_all:
            raise
    except KdrError as error:
        channel.report(Failed(error, by_all=False))
        raise
    except Exception:
        # most often because another rank has died in the middle of a collective
        channel.report(
            Lost(f"rank {ranks.rank}: {traceback.format_exc().strip().splitlines()[-1]}")
        )
        raise
