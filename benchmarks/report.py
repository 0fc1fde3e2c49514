"""Measures time and memory of `table`, `verify` and `report` on a log of 10,000 trials.

    python benchmarks/report.py                            # 50 ablations of 20 arms by 10 seeds
    python benchmarks/report.py --studies 1 --seeds 100    # one ablation of 100 arms by 100 seeds
    python benchmarks/report.py --storage FOLDER           # keeps the log, or uses the one there

Trials have 24 epochs. The log has the real schema and is compacted, as after every run. Each
command runs in its own process; the times include its start.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from kdr.config.study import study_from, study_yaml
from kdr.results.compact import compact
from kdr.results.schema import ArmRow, EpochRow, TrialEvent, utc_now
from kdr.results.writer import LogWriter
from kdr.storage.layout import Storage

EPOCHS, SEED_SD, TRIAL_SD = 24, 0.004, 0.003
ORCHESTRATE = Path(__file__).parents[1] / "orchestrate.py"
TERMS = ("classification", "bbox_regression", "kdr.foreground", "kdr.background")
CLASSES = ("circle", "square", "triangle", "star", "cross", "ring")


def study_content(name: str, num_arms: int, num_seeds: int, first_seed: int) -> dict[str, Any]:
    """Returns an ablation with a baseline and `num_arms` other arms."""
    return {
        "study": name,
        "trial": {
            "data": {"dataset": "shapes"},
            "teacher": {"backbone": "resnet18", "training": {"epochs": 4}},
            "student": {"backbone": "mobilenet_v3_small", "fpn_channels": 64},
            "distill": {"kdr": {"weight": 3.0}},
            "training": {"epochs": EPOCHS},
        },
        "ablation": {
            "design": "arms",
            "arms": {
                f"arm-{number:03}": {"distill.kdr.weight": number + 4.0}
                for number in range(num_arms)
            },
            "seeds": {"count": num_seeds, "first": first_seed},
            "margin": 0.005,
        },
    }


def write_study(
    storage: Storage, number: int, num_arms: int, num_seeds: int, generator: np.random.Generator
) -> None:
    """Writes and compacts the log of one finished ablation, whose seeds no other study has.

    Args:
        storage: where the log is.
        number: of the study, from 0.
        num_arms: arms with the baseline.
        num_seeds: seeds per arm.
        generator: draws the values.
    """
    name, first_seed = f"study-{number:03}", number * num_seeds
    study = study_from(study_content(name, num_arms - 1, num_seeds, first_seed), folder=Path("/"))
    assert study.ablation is not None
    content, of_seed = json.dumps(study_yaml(study)), generator.normal(0.4, SEED_SD, num_seeds)
    arms = {"baseline": {}, **study.ablation.arms}
    # flushed only at the end: a file per event would make the benchmark measure its own log
    with LogWriter(storage, name, flush_every_s=1e9) as writer:
        rows: list[ArmRow] = []
        events: list[TrialEvent] = []
        for place, (arm, changes) in enumerate(arms.items()):
            for seed in range(first_seed, first_seed + num_seeds):
                key, time_ = generator.bytes(16).hex(), utc_now()
                common: dict[str, Any] = {"study": name, "key": key, "time": time_}
                rows.append(
                    ArmRow(
                        **common,
                        arm=arm,
                        seed=seed,
                        study_config=content,
                        levels="{}",
                        is_reference=place == 0,
                    )
                )
                value = float(
                    of_seed[seed - first_seed]
                    + generator.normal(0.001 * (place % 7 - 3) * (place > 0), TRIAL_SD)
                )
                config = study.trial_with({**changes, "seed": seed}).model_dump_json()
                for row in epoch_rows(common, value, seed):
                    writer.epoch(row)
                ended: dict[str, Any] = {
                    "epoch": EPOCHS,
                    "AP": value,
                    "AP50": value + 0.2,
                    "seconds": 120.0,
                    "commit": "c0ffee",
                    "data_id": "d1",
                }
                events += [
                    TrialEvent(**common, event="started", config=config, seed=seed),
                    TrialEvent(**common, event="completed", config=config, seed=seed, **ended),
                ]
        writer.arms(rows)
        writer._append("trials", events)  # all in one file; writer.event writes one file each
    compact(storage, name)


def epoch_rows(common: dict[str, Any], value: float, seed: int) -> list[EpochRow]:
    """Returns the epochs of a trial, with every column that a run logs."""
    return [
        EpochRow(
            **common,
            attempt=1,
            epoch=epoch,
            step=epoch * 32,
            AP=value * epoch / EPOCHS,
            AP50=value * epoch / EPOCHS + 0.2,
            ap_per_class=dict.fromkeys(CLASSES, value),
            losses=dict.fromkeys(TERMS, 1 / epoch),
            weighted_losses=dict.fromkeys(TERMS, 2 / epoch),
            gradient_norms={"detection": 1.0, "kdr": 0.5},
            extras={"kdr.scale": 0.1},
            lr=0.01,
            seconds=5.0,
            eval_seconds=0.4,
            images_per_s=100.0,
            images_seen=epoch * 512,
            first_batch_hash=f"{seed:08x}{epoch:08x}",
        )
        for epoch in range(1, EPOCHS + 1)
    ]


def measured(*arguments: str) -> tuple[float, float, float]:
    """Runs a command and returns its seconds, CPU seconds and peak memory in MiB."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, str(ORCHESTRATE), *arguments], stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        raise SystemExit(f"{' '.join(arguments)} failed")
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 2**10


def main() -> None:
    """Writes the log and prints time and memory of each command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=10_000, help="number of trials in the log")
    parser.add_argument("--studies", type=int, default=50, help="number of studies they belong to")
    parser.add_argument("--seeds", type=int, default=10, help="seeds per arm")
    parser.add_argument(
        "--storage", type=Path, help="where to keep the log; a temporary folder by default"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        storage = Storage.at(arguments.storage or folder)
        num_arms = arguments.trials // arguments.studies // arguments.seeds
        if not storage.log.exists():
            start, generator = time.perf_counter(), np.random.default_rng(0)
            for number in range(arguments.studies):
                write_study(storage, number, num_arms, arguments.seeds, generator)
            print(f"log written in {time.perf_counter() - start:.0f} s")
        files = storage.log.local_folder.rglob("*.parquet")
        size = sum(path.stat().st_size for path in files) / 2**20
        print(
            f"{arguments.studies} studies of {num_arms} arms by {arguments.seeds} seeds, {EPOCHS} "
            f"epochs each, {size:.0f} MiB"
        )
        where = ["--storage", str(storage.root)]
        table_file = str(Path(folder) / "table.tex")
        commands = {
            "table": ["table", "study-000", *where],
            "table --metric ...": [
                "table",
                "study-000",
                *where,
                "--metric",
                "AP",
                "--metric",
                "AP/star",
                "--metric",
                "s/epoch",
            ],
            "table --output": ["table", "study-000", *where, "--output", table_file],
            "verify": ["verify", table_file, *where],
            "report": ["report", "study-000", *where, "--output", str(Path(folder) / "page.html")],
        }
        for name, command in commands.items():
            seconds, cpu_seconds, mebibytes = measured(*command)
            print(f"{name:<20}{seconds:>6.1f} s{cpu_seconds:>6.1f} s of CPU{mebibytes:>8.0f} MiB")


if __name__ == "__main__":
    main()
