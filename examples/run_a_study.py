"""Reads, plans and runs a study from Python, and follows it with an observer of its own.

Usage: python examples/run_a_study.py search_spaces/quickstart.yaml --set search.trials=4
"""

import argparse

import kdr


class OneLinePerTrial:
    """An observer: prints each trial as it ends. Its four methods are `kdr.Observer`."""

    def phase(self, text: str) -> None:
        """A new part of the run starts."""
        print(text)

    def finding(self, finding: object) -> None:
        """The pre-flight found something."""
        print(f"pre-flight: {finding}")

    def plan(self, num_trials: int | None, num_done: int, num_concurrent: int) -> None:
        """The size of the study is known."""
        print(f"{num_done} of {num_trials} trials are done; {num_concurrent} run at a time")

    def update(self, progress: kdr.TrialUpdate) -> None:
        """A trial made progress."""
        if progress.state != "running":
            value = "no value" if progress.value is None else f"{progress.value:.3f}"
            print(f"{progress.name}: {progress.state} at epoch {progress.epoch}, {value}")


def main() -> None:
    """Runs the example."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", help="a study file")
    parser.add_argument("--storage", default="runs")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE")
    options = parser.parse_args()

    study = kdr.read_study(options.study, options.set)
    plan = kdr.plan_study(study, storage=options.storage)
    print(f"{study.study}: {plan.num_trials} trials, {plan.num_known} of them known")
    for warning in plan.warnings:
        print(f"warning: {warning}")

    outcome = kdr.run_study(study, storage=options.storage, observer=OneLinePerTrial())
    print(f"{outcome.num_run} trials run, {outcome.num_failed} failed, {outcome.seconds:.0f} s")
    print(kdr.make_table(kdr.open_log(options.storage), study.study))


if __name__ == "__main__":
    main()
