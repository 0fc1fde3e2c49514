"""Measures the overhead of a trial beyond its training: kdr against the pattern in Ray's docs.

    python benchmarks/trial_overhead.py               # one worker: kdr reuses its actor
    python benchmarks/trial_overhead.py --workers 2   # data-parallel: kdr keeps its gang warm

Both sides train the same tiny trials, one at a time: generated shapes, a teacher, one epoch. The
documented pattern is a function trainable that starts a TorchTrainer with the same number of
workers, each of which iterates the same `fit()`. The overhead is the time from the end of one trial
to the end of the next, without the epochs and evaluations that `fit()` reports. The first trial of
each side includes the start of its processes and is reported separately.
"""

import argparse
import itertools
import logging
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from kdr.config.study import Study, study_from
from kdr.config.trial import Trial
from kdr.run.cluster.ray_session import QUIET, ray_session
from kdr.run.cluster.trial_resources import ResolvedResources
from kdr.run.trial_identity import trial_maker
from kdr.run.trial_list import TrialList
from kdr.storage.layout import Storage

os.environ.update(QUIET)  # before ray is imported, which reads it

STUDY: dict[str, Any] = {
    "study": "overhead",
    "trial": {
        "data": {"dataset": "shapes", "image_size_px": 64, "num_train": 16, "num_val": 8},
        "teacher": {
            "backbone": "resnet18",
            "fpn_channels": 32,
            "training": {"epochs": 1, "batch_size": 16},
        },
        "student": {"backbone": "mobilenet_v3_small", "fpn_channels": 32},
        "distill": {"kdr": {}},
        "training": {"epochs": 1, "batch_size": 16, "lr": 1e-3},
    },
}


class Ends:
    """An observer that records when trials end."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def phase(self, text: str) -> None:
        """Nothing."""

    def finding(self, finding: Any) -> None:
        """Nothing."""

    def plan(self, num_trials: int | None, num_done: int, num_concurrent: int) -> None:
        """Nothing."""

    def update(self, progress: Any) -> None:
        """Records the end of a trial."""
        if progress.state == "completed":
            self.times.append(time.perf_counter())


def ours(
    study: Study, storage: Storage, trials: TrialList, resources: ResolvedResources
) -> tuple[float, list[float]]:
    """Runs the trials with kdr.

    Returns:
        Seconds to the end of the first trial, and from the end of each trial to that of the next,
        without training.
    """
    from kdr.results.reader import read_log
    from kdr.run.driver.trial_claims import TrialClaims
    from kdr.run.study_driver import StudyDriver
    from kdr.run.sweep import run_list

    ends, start = Ends(), time.perf_counter()
    claims = TrialClaims(storage, study.study, "benchmark")
    run_list(StudyDriver(study, storage, ends, claims), trials, resources, 1)
    log = read_log(storage)
    training = [
        sum(row["seconds"] + row["eval_seconds"] for row in log.epochs_of(key).to_pylist())
        for key in trials.trials
    ]
    gaps = [after - before for before, after in itertools.pairwise(ends.times)]
    return ends.times[0] - start - training[0], [
        gap - spent for gap, spent in zip(gaps, training[1:], strict=True)
    ]


def train_on_worker(config: dict[str, Any]) -> None:
    """Trains one trial: the training function of the documented pattern."""
    import ray.train
    import torch

    from kdr.run.launched_trial import LaunchedTrial
    from kdr.training.fit import fit
    from kdr.training.ranks import ALONE, Ranks

    torch.set_num_threads(1)
    ranks = Ranks.joined() if config["workers"] > 1 else ALONE
    trial = LaunchedTrial.of_config(config).trial
    for metrics in fit(trial, storage=config["storage"], ranks=ranks):
        assert metrics.evaluation is not None
        ray.train.report(
            {
                "AP": metrics.evaluation.metrics["AP"],
                "epoch": metrics.epoch,
                "training": metrics.seconds + metrics.eval_seconds,
            }
        )


def start_trainer(config: dict[str, Any]) -> None:
    """Starts a TorchTrainer for one trial: the function trainable of the documented pattern."""
    import ray.train
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    from kdr.run.launched_trial import LaunchedTrial

    TorchTrainer(
        train_on_worker,
        train_loop_config=config,
        scaling_config=ray.train.ScalingConfig(
            num_workers=config["workers"], resources_per_worker={"CPU": 1}
        ),
        run_config=ray.train.RunConfig(
            name=LaunchedTrial.of_config(config).key,
            storage_path=str(config["storage"].ray),
            callbacks=[TuneReportCallback()],  # type: ignore[no-untyped-call, list-item]
        ),
    ).fit()


def documented(storage: Storage, trials: list[Trial], workers: int) -> tuple[float, list[float]]:
    """Runs the trials with the documented pattern; returns the same as `ours`."""
    from ray import tune

    from kdr.run.launched_trial import LaunchedTrial, as_tune_grid

    ends: list[tuple[float, float]] = []

    class NoteEnd(tune.Callback):
        def on_trial_complete(
            self, iteration: int, trials: list[Any], trial: Any, **info: Any
        ) -> None:
            ends.append((time.perf_counter(), trial.last_result["training"]))

    start = time.perf_counter()
    tune.Tuner(
        # A trial that reserved a CPU would wait forever for its own workers, and {"CPU": 0} alone
        # is an error (Ray 2.60), hence the share of the head node.
        tune.with_resources(
            start_trainer,
            tune.PlacementGroupFactory([{"CPU": 0, "node:__internal_head__": 0.001}]),
        ),
        param_space={
            **as_tune_grid(LaunchedTrial.of(trial) for trial in trials),
            "storage": storage,
            "workers": workers,
        },
        tune_config=tune.TuneConfig(max_concurrent_trials=1),
        run_config=tune.RunConfig(storage_path=str(storage.ray), verbose=0, callbacks=[NoteEnd()]),
    ).fit()
    gaps = [after[0] - before[0] - after[1] for before, after in itertools.pairwise(ends)]
    return ends[0][0] - start - ends[0][1], gaps


def main() -> None:
    """Prints the overhead per trial of both sides, and their ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ours", type=int, default=21, help="number of trials with kdr")
    parser.add_argument(
        "--documented", type=int, default=4, help="number of trials with the documented pattern"
    )
    parser.add_argument("--workers", type=int, default=1, help="workers per trial")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder, ray_session(None):
        from kdr.data.splits import open_splits
        from kdr.run.attempt.logged_fit import teacher_of
        from kdr.run.driver.trial_claims import TrialClaims
        from kdr.run.study_driver import StudyDriver
        from kdr.run.sweep import run_teachers

        storage = Storage.at(folder)
        resources = ResolvedResources(workers=arguments.workers)
        weights = iter(range(4, 1000))  # the default is 3, and equal trials would run only once

        def study_of(count: int) -> Study:
            arms = {
                f"trial-{number}": {"distill.kdr.weight": float(next(weights))}
                for number in range(1, count)
            }
            ablation = {"design": "arms", "arms": arms, "seeds": [0]}
            content = {
                **STUDY,
                "ablation": ablation,
                "resources": {"workers": arguments.workers, "gpus_per_worker": 0},
            }
            return study_from(content, folder=Path())

        def trials_of(study: Study) -> TrialList:
            return TrialList(study, trial_maker(study, storage))

        study = study_of(arguments.ours)
        open_splits(study.base.data, storage)
        teacher = teacher_of(trial_maker(study, storage)(study.base))
        assert teacher is not None
        claims = TrialClaims(storage, study.study, "benchmark")
        driver = StudyDriver(study, storage, Ends(), claims)
        run_teachers(driver, [teacher], resources, missing=lambda _log: [teacher])
        # without the baseline, which the other side may have trained already
        others = [
            one.trial for one in trials_of(study_of(arguments.documented + 1)).trials.values()
        ][1:]
        sides = {
            "kdr": ours(study, storage, trials_of(study), resources),
            "documented": documented(storage, others, arguments.workers),
        }
    print(
        f"{'':<12}{'first trial':>14}{'then, median':>14}{'min':>10}{'max':>10}   seconds "
        "of overhead"
    )
    for name, (first, rest) in sides.items():
        print(
            f"{name:<12}{first:>14.2f}{statistics.median(rest):>14.3f}"
            f"{min(rest):>10.3f}{max(rest):>10.3f}   "
            f"({len(rest)} trials)"
        )
    ratio = statistics.median(sides["documented"][1]) / statistics.median(sides["kdr"][1])
    print(f"ratio of the medians: {ratio:.0f}")


if __name__ == "__main__":
    main()
