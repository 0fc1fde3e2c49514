"""Measures what a trial costs driver and log as a study grows, and queries of a large log.

    python benchmarks/scale.py                              # 100, 1,000, 3,000 trials; then the log
    python benchmarks/scale.py --trials 100 1000 --log-trials 0     # two studies, no log
    python benchmarks/scale.py --trials                             # the log alone

The trials are real except for their training: a search proposes them, Ray's actors run them, and
each logs one epoch, which takes no time. Each study has its own driver process and its own Ray.
`status`, `table` and `query` run in processes of their own; their times include the start.

The log has 10,000 trials of 24 epochs, from `benchmarks/report.py`. One process, with its imports
done, sends the queries: on a new connection, as `kdr query` does, and on an open one. For
comparison, the same question goes to the files that Ray Tune writes for as many trials
(`result.json`, one line per epoch, by Ray's own callback), read into a dataframe.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from ray.tune.logger import JsonLoggerCallback

from kdr.config.study import Study, study_from
from kdr.config.trial import Trial
from kdr.randomness import address
from kdr.storage.layout import Storage
from kdr.training.metrics import EpochMetrics, Evaluation

ORCHESTRATE = Path(__file__).parents[1] / "orchestrate.py"
EPOCHS = 24
QUESTION = "SELECT arm, avg(AP) AS mean, count(*) AS n FROM trials GROUP BY arm ORDER BY mean DESC"
OF_EPOCHS = "SELECT epoch, avg(AP), avg(seconds) FROM epochs GROUP BY epoch ORDER BY epoch"


def study_of(num_trials: int) -> Study:
    """Returns a random search of `num_trials` trials of one epoch."""
    trial = {"data": {"dataset": "shapes", "search_split": 64}, "training": {"epochs": 1}}
    search = {
        "trials": num_trials,
        "sampler": "random",
        "parameters": {"training.lr": {"float": [1e-5, 1e-1], "log": True}},
    }
    content = {
        "study": "scale",
        "trial": trial,
        "search": search,
        "resources": {"max_concurrent": 2, "gpus_per_worker": 0},
    }
    return study_from(content, folder=Path("/"))


class NoTraining:
    """An engine whose epochs take no time."""

    where: dict[str, Any] = {}

    def fit(self, trial: Trial) -> Iterator[EpochMetrics]:
        """Yields the only epoch of a trial."""
        yield EpochMetrics(
            epoch=1,
            step=32,
            losses={"classification": 1.0, "bbox_regression": 0.5},
            weighted_losses={"classification": 1.0, "bbox_regression": 0.5},
            gradient_norms={"detection": 1.0},
            lr=trial.config.training.lr,
            seconds=1.0,
            eval_seconds=0.1,
            images_per_s=512.0,
            images_seen=512,
            peak_memory_bytes=None,
            first_batch_hash="0",
            evaluation=Evaluation({"AP": address(0, trial.key) / 2**63}, {}),
            is_last=True,
        )

    def close(self) -> None:
        """Nothing."""


class Ends:
    """An observer that records when trials end, by wall clock and by CPU time of this process."""

    def __init__(self) -> None:
        self.times: list[tuple[float, float]] = []

    def phase(self, text: str) -> None:
        """Nothing."""

    def finding(self, finding: Any) -> None:
        """Nothing."""

    def plan(self, num_trials: int | None, num_done: int, num_concurrent: int) -> None:
        """Nothing."""

    def update(self, progress: Any) -> None:
        """Records the end of a trial."""
        if progress.state == "completed":
            self.times.append((time.perf_counter(), time.process_time()))


def run_study_of(num_trials: int, folder: str) -> dict[str, float]:
    """Runs a study in this process.

    Returns:
        Seconds and CPU seconds per trial after the first, and peak memory.
    """
    from kdr.run import tune_run
    from kdr.run.attempt.trial_actor import TrialActor
    from kdr.run.cluster.ray_session import ray_session
    from kdr.run.cluster.trial_resources import ResolvedResources
    from kdr.run.driver.trial_claims import TrialClaims
    from kdr.run.study_driver import StudyDriver
    from kdr.run.sweep import run_search
    from kdr.run.trial_identity import trial_maker

    # The patch is applied in the actor's process: one in the driver's would not reach it.
    class NoTrainingActor(TrialActor):
        def setup(self, config: dict[str, Any], *, settings: Any) -> None:  # type: ignore[override]
            with patch("kdr.run.attempt.trial_actor._engine", lambda _: NoTraining()):
                super().setup(config, settings=settings)

    study, storage, ends = study_of(num_trials), Storage.at(folder), Ends()
    with ray_session(None), patch.object(tune_run, "TrialActor", NoTrainingActor):
        claims = TrialClaims(storage, study.study, "benchmark")
        driver = StudyDriver(study, storage, ends, claims)
        ran = run_search(driver, trial_maker(study, storage), ResolvedResources(), 2)
        assert (ran.num_run, ran.num_failed) == (num_trials, 0), (ran.num_run, ran.num_failed)
        # without the first trial, which waits for the actors to start
        (first, first_cpu), (last, last_cpu) = ends.times[0], ends.times[-1]
        return {
            "seconds": (last - first) / (num_trials - 1),
            "cpu_seconds": (last_cpu - first_cpu) / (num_trials - 1),
            "memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10,
        }


def measured_study(num_trials: int) -> dict[str, float]:
    """Runs a study of `num_trials` trials and the commands on its log, each in its own process."""
    with tempfile.TemporaryDirectory() as folder:
        output = subprocess.run(
            [sys.executable, __file__, "--one", str(num_trials), "--storage", folder],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        found: dict[str, float] = json.loads(output.splitlines()[-1])
        found["log_kib"] = log_kib(folder, "*.parquet")
        where = ["--storage", folder]
        found["compact_s"] = seconds_of("log", "compact", "scale", *where)
        found["compacted_kib"] = log_kib(folder, "c-*.parquet")
        found["status_s"] = seconds_of("status", "scale", *where)
        found["table_s"] = seconds_of("table", "scale", *where)
        found["query_s"] = seconds_of("query", QUESTION, *where)
    return found


def log_kib(folder: str, pattern: str) -> float:
    """Returns the size in KiB of those files of the log whose names match."""
    files = Storage.at(folder).log.local_folder.rglob(pattern)
    return sum(path.stat().st_size for path in files) / 2**10


def compare_studies(sizes: Sequence[int]) -> None:
    """Prints the measurements of studies of these sizes.

    A study of the smallest size runs before and after each larger one, so that a drift of the
    machine's speed does not look like an effect of the size.
    """
    print(
        "trials   trials/min   driver CPU/trial   driver RSS   log   compacted   compact   "
        "status   table   query"
    )
    ratios = {}
    for num_trials in sizes:
        before = measured_study(sizes[0])["seconds"] if num_trials != sizes[0] else None
        found = measured_study(num_trials)
        if before is not None:
            ratios[num_trials] = (
                2 * found["seconds"] / (before + measured_study(sizes[0])["seconds"])
            )
        print(
            f"{num_trials:>6}{60 / found['seconds']:>13.0f}{found['cpu_seconds'] * 1000:>16.1f} "
            f"ms{found['memory_mib']:>9.0f} MiB{found['log_kib']:>7.0f} "
            f"KiB{found['compacted_kib']:>5.0f} KiB{found['compact_s']:>8.1f} "
            f"s{found['status_s']:>7.1f} s{found['table_s']:>6.1f} s{found['query_s']:>6.1f} s",
            flush=True,
        )
    for num_trials, ratio in ratios.items():
        print(
            f"a trial among {num_trials} takes {ratio:.2f} times as long as one among {sizes[0]}, "
            "in studies just before and after it"
        )


def seconds_of(*arguments: str) -> float:
    """Runs a command and returns its seconds."""
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, str(ORCHESTRATE), *arguments], check=True, stdout=subprocess.DEVNULL
    )
    return time.perf_counter() - start


def timed(run_query: Callable[[], Any]) -> float:
    """Runs a query and returns its seconds."""
    start = time.perf_counter()
    run_query()
    return time.perf_counter() - start


def compare_logs(num_trials: int, rounds: int) -> None:
    """Prints the times of queries to a log of `num_trials` trials, and to Ray's files."""
    import numpy as np
    from report import write_study

    from kdr.results.sql import connect, query

    with tempfile.TemporaryDirectory() as folder:
        storage = Storage.at(folder)
        generator = np.random.default_rng(0)
        ray_files = Path(folder) / "ray"
        for number in range(50):
            write_study(storage, number, num_trials // 500, 10, generator)
        write_ray_files(ray_files, num_trials)
        with connect(storage) as connection:
            queries: dict[str, Callable[[], Any]] = {
                "new connection: trials": lambda: query(storage, QUESTION),
                "new connection: epochs": lambda: query(storage, OF_EPOCHS),
                "new connection: all columns of the trials": lambda: query(
                    storage, "SELECT * FROM trials"
                ),
                "open connection: trials": lambda: connection.sql(QUESTION).fetchall(),
                "open connection: epochs": lambda: connection.sql(OF_EPOCHS).fetchall(),
                "result.json of Ray Tune into a dataframe: epochs": lambda: mean_by_epoch(
                    ray_files
                ),
            }
            seconds = {
                name: [timed(run_query) for _ in range(rounds)]
                for name, run_query in queries.items()
            }
        print(
            f"\n{num_trials} trials of {EPOCHS} epochs, compacted: seconds, min and median of "
            f"{rounds}"
        )
        for name, found in seconds.items():
            print(f"{name:<52}{min(found):>8.3f}{statistics.median(found):>8.3f}")


class RayTrial:
    """The attributes of a Ray Tune trial that its JSON callback reads."""

    def __init__(self, folder: Path, number: int) -> None:
        self.trial_id = f"{number:05}"
        self.config = {"lr": number / 1e6}
        self.local_path = str(folder / f"trial_{number:05}")
        Path(self.local_path).mkdir(parents=True)

    def init_local_path(self) -> None:
        """Does nothing: the folder exists."""


class RayCallback(JsonLoggerCallback):
    """Ray's own callback, for trials that have not run before."""

    def _restore_from_remote(self, file_name: str, trial: Any) -> None:
        """Does nothing: there is no earlier file."""


def write_ray_files(folder: Path, num_trials: int) -> None:
    """Writes the results of `num_trials` trials as Ray Tune does, with the columns that it adds."""
    callback: Any = RayCallback()  # type: ignore[no-untyped-call]
    added = {
        "date": "2026-01-01_00-00-00",
        "pid": 1,
        "hostname": "a-node",
        "node_ip": "10.0.0.1",
        "done": False,
    }
    for number in range(num_trials):
        trial = RayTrial(folder, number)
        for epoch in range(1, EPOCHS + 1):
            times = dict.fromkeys(
                ("time_this_iter_s", "time_total_s", "time_since_restore", "timestamp"),
                epoch * 5.0,
            )
            numbers = {
                "training_iteration": epoch,
                "iterations_since_restore": epoch,
                "trial_id": trial.trial_id,
            }
            result = {"epoch": epoch, "AP": epoch / EPOCHS, "seconds": 5.0, "config": trial.config}
            callback.log_trial_result(epoch, trial, result | numbers | times | added)
        callback.log_trial_end(trial)


def mean_by_epoch(folder: Path) -> Any:
    """Returns means by epoch from Ray's files, read like `ResultGrid` does: a frame per trial."""
    import pandas as pd  # type: ignore[import-untyped]

    frames = [
        pd.json_normalize(
            [json.loads(line) for line in (path / "result.json").read_text().splitlines()], sep="/"
        )
        for path in sorted(folder.iterdir())
    ]
    return pd.concat(frames, ignore_index=True).groupby("epoch")[["AP", "seconds"]].mean()


def main() -> None:
    """Measures studies of increasing size, then a large log."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--trials",
        type=int,
        nargs="*",
        default=[100, 1000, 3000],
        help="sizes of the studies; without a number no study runs",
    )
    parser.add_argument(
        "--log-trials",
        type=int,
        default=10_000,
        help="trials in the large log, at least 1000; 0 skips it",
    )
    parser.add_argument("--rounds", type=int, default=5, help="repetitions of each query")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--storage", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(run_study_of(arguments.one, arguments.storage)), flush=True)
        os._exit(0)  # skips Ray's shutdown, which the parent process would wait for
    if arguments.trials:
        compare_studies(arguments.trials)
    if arguments.log_trials:
        compare_logs(arguments.log_trials, arguments.rounds)


if __name__ == "__main__":
    main()
