"""Measures the start-up CPU time of `plan`, `status` and `table`, compared with `--help`.

    python benchmarks/startup.py
    python benchmarks/startup.py --imports table     # the slowest imports of one command

The study is small, and each command is its own process. Each round runs all commands, so that a
drift of the machine's speed affects all of them.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from kdr.storage.layout import Storage

ROOT = Path(__file__).parents[1]
COMMANDS = {
    "--help": ("--help",),
    "plan": ("plan", "study.yaml"),
    "status": ("status", "study-000"),
    "table": ("table", "study-000"),
}
IMPORTS = "import typer, pyarrow, pyarrow.parquet, pyarrow.compute"
"""The imports that every command that reads the log needs."""


def write_small_study(folder: Path) -> None:
    """Writes the study file and the log of an ablation of 3 arms by 3 seeds."""
    import yaml
    from report import study_content, write_study

    write_study(Storage.at(str(folder / "runs")), 0, 3, 3, np.random.default_rng(0))
    (folder / "study.yaml").write_text(yaml.safe_dump(study_content("study-000", 2, 3, 0)))


def cpu_seconds(folder: Path, arguments: tuple[str, ...]) -> float:
    """Runs a command and returns its user and system time."""
    before = os.times()
    command = [sys.executable, *arguments]
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    return sum(after[2:4]) - sum(before[2:4])


def slowest_imports(folder: Path, arguments: tuple[str, ...], num: int = 25) -> str:
    """Returns lines of `python -X importtime`: microseconds with and without a module's imports."""
    command = [sys.executable, "-X", "importtime", str(ROOT / "orchestrate.py"), *arguments]
    text = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stderr
    rows = re.findall(r"^import time: +(\d+) \| +(\d+) \| ( *\S+)$", text, flags=re.MULTILINE)
    slowest = sorted(rows, key=lambda row: -int(row[1]))[:num]
    return "\n".join(f"{total:>9}{own:>9}  {name.strip()}" for own, total, name in slowest)


def main() -> None:
    """Prints the CPU time of each command, or the imports of one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9, help="measured runs of each command")
    parser.add_argument(
        "--imports", choices=list(COMMANDS), help="show the slowest imports of this command instead"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_small_study(folder)
        if options.imports:
            print(slowest_imports(folder, COMMANDS[options.imports]))
            return
        measured: dict[str, tuple[str, ...]] = {
            command: (str(ROOT / "orchestrate.py"), *arguments)
            for command, arguments in COMMANDS.items()
        } | {"imports": ("-c", IMPORTS)}
        seconds: dict[str, list[float]] = {command: [] for command in measured}
        for _ in range(options.rounds + 1):
            for command, arguments in measured.items():
                seconds[command].append(cpu_seconds(folder, arguments))
    help_s = statistics.median(seconds["--help"][1:])  # the first round compiles and warms the disk
    print(f"{'':<10}{'CPU s, median':>14}{'least':>8}{'times --help':>14}")
    for command, found in seconds.items():
        median = statistics.median(found[1:])
        print(f"{command:<10}{median:>14.3f}{min(found):>8.3f}{median / help_s:>14.2f}")


if __name__ == "__main__":
    main()
