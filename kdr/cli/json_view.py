"""A run as JSON lines on standard output, for programs: `run --json`."""

import contextlib
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from kdr.report.formatting import json_text
from kdr.results.schema import utc_now
from kdr.run.observer import TrialUpdate
from kdr.training.findings import Finding

if TYPE_CHECKING:
    from kdr.config.study import Study
    from kdr.run.study_run import Outcome
    from kdr.storage.layout import Storage


class JsonView:
    """Prints what happens in a run, one JSON object per line; an `Observer`.

    The objects are documented in docs/commands.md. A program may rely on their fields, and must
    ignore fields and events that it does not know.

    Args:
        out: where the lines go.
        metric: name of the metric whose value is reported.
    """

    def __init__(self, out: TextIO, *, metric: str) -> None:
        self._out, self._metric = out, metric
        self._start = time.monotonic()
        self._last: dict[str, TrialUpdate] = {}
        self._running: set[str] = set()

    def launch(self, study: "Study", storage: "Storage", *, num_trials: int | None) -> None:
        """Reports the start of the run."""
        import kdr

        self._print(
            "launch",
            study=study.study,
            **key_facts(study),
            num_trials=num_trials,
            storage=str(storage.root),
            log=str(storage.log),
            version=kdr.__version__,
            pid=os.getpid(),
        )

    def phase(self, text: str) -> None:
        """Reports a new phase of the run."""
        self._print("phase", text=text)

    def finding(self, finding: Finding) -> None:
        """Reports a finding of the pre-flight."""
        self._print(
            "finding", name=finding.name, state=finding.state, text=finding.text, fix=finding.fix
        )

    def plan(self, num_trials: int | None, num_done: int, num_concurrent: int) -> None:
        """Reports the number of trials: in all, done before this run, and at a time."""
        self._print("plan", num_trials=num_trials, num_done=num_done, num_concurrent=num_concurrent)

    def update(self, progress: TrialUpdate) -> None:
        """Reports the progress of a trial."""
        change = self._change(progress)
        self._last[progress.key] = progress
        if change is None:
            return
        self._print(
            "trial",
            change=change,
            state=progress.state,
            key=progress.key,
            name=progress.name,
            epoch=progress.epoch,
            epochs=progress.epochs,
            metric=self._metric,
            value=progress.value,
            parameters=progress.parameters,
            reason=progress.reason,
        )

    def done(self, outcome: "Outcome", *, counts: Mapping[str, int], exit_code: int) -> None:
        """Reports the end of the run; `counts` has the number of trials in each state."""
        self._print(
            "done",
            outcome=_outcome(outcome),
            counts=counts,
            num_run=outcome.num_run,
            num_failed=outcome.num_failed,
            reason=outcome.abort_reason,
            exit_code=exit_code,
        )

    def _change(self, progress: TrialUpdate) -> str | None:
        """Returns the kind of a trial's change; None if nothing changed."""
        before = self._last.get(progress.key)
        if progress.state != "running":
            if before is not None and before.state == progress.state:
                return None
            # a trial that never ran here ended in an earlier run or in another study
            is_ours = progress.key in self._running
            self._running.discard(progress.key)
            return "ended" if is_ours else "known"
        if progress.key not in self._running:
            self._running.add(progress.key)
            return "started"
        assert before is not None
        if progress.reason and progress.reason != before.reason:
            return "restarted"
        return "epoch" if progress.epoch != before.epoch else None

    def _print(self, event: str, **fields: Any) -> None:
        seconds = round(time.monotonic() - self._start, 3)
        record = {"event": event, "time": utc_now(), "seconds": seconds, **fields}
        try:
            print(json_text(record), file=self._out, flush=True)
        except BrokenPipeError:
            # a reader that goes away must not end a run of many GPU-hours
            with Path(os.devnull).open("w") as nowhere:
                os.dup2(nowhere.fileno(), self._out.fileno())


def key_facts(study: "Study") -> dict[str, Any]:
    """Returns the main facts of a study as plain values."""
    base = study.base
    student, teacher = base.student, base.teacher
    kind = "search" if study.search else "ablation" if study.ablation else "trial"
    return {
        "kind": kind,
        "metric": study.metric,
        "data": base.data.dataset,
        "student": f"{student.detector} {student.backbone}",
        "teacher": f"{teacher.detector} {teacher.backbone}" if teacher else None,
        "epochs": base.training.epochs,
        "seeds": list(study.ablation.all_seeds) if study.ablation else [base.seed],
    }


def _outcome(outcome: "Outcome") -> str:
    if outcome.interrupted:
        return "terminated" if outcome.terminated else "interrupted"
    if outcome.abort_reason:
        return "aborted"
    return "failed" if outcome.num_failed else "completed"


@contextlib.contextmanager
def json_output() -> Iterator[TextIO]:
    """Yields standard output for JSON alone; all other output goes to standard error.

    Python code is redirected by `sys.stdout`; C libraries and child processes by the file
    descriptor, unless `sys.stdout` is not a file, as in tests.
    """
    out = sys.stdout
    with contextlib.ExitStack() as stack:
        if _has_descriptor(sys.stdout, 1) and _has_descriptor(sys.stderr, 2):
            sys.stdout.flush()
            out = stack.enter_context(os.fdopen(os.dup(1), "w", encoding="utf-8"))
            stack.callback(os.dup2, out.fileno(), 1)
            os.dup2(2, 1)
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        yield out


def _has_descriptor(stream: TextIO, number: int) -> bool:
    try:
        return stream.fileno() == number
    except (OSError, ValueError):
        return False
