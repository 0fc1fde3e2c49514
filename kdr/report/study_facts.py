"""Facts about a study: its question, cost, failures and provenance."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc

from kdr.report.formatting import commit_text, spaced
from kdr.results.reader import Log, TrialState
from kdr.results.usage import gpu_hours_used, seconds_used

MOST_FAILURES = 50
_LONGEST_TRACEBACK = 6000  # characters; the end of a traceback names the error


@dataclass(frozen=True)
class Failure:
    """A trial that failed, was cancelled or excluded."""

    name: str
    key: str
    state: str
    kind: str
    epoch: int
    reason: str
    traceback: str


@dataclass(frozen=True)
class StudyCost:
    """The resources that a study has used."""

    counts: Mapping[str, int]
    """State in words -> number of students, most frequent first."""
    num_epochs: int
    hours: float
    """Wall-clock hours of training."""
    gpu_hours: float
    trial_seconds: float
    """Training time summed over trials, including teachers."""
    images_per_s: float | None
    """Median over epochs."""
    peak_memory_bytes: int | None
    """Peak on a GPU; None without one."""
    limits: Mapping[str, float]
    """Declared budget: trials, hours, gpu_hours."""


@dataclass(frozen=True)
class Provenance:
    """Where the results come from: each distinct value with its number of trials."""

    commits: Mapping[str, int]
    data: Mapping[str, int]
    teachers: Mapping[str, int]
    hosts: Mapping[str, int]
    devices: Mapping[str, int]
    versions: Mapping[str, Mapping[str, int]]
    """Package -> version -> number of trials."""
    first: str
    last: str
    """Times of the first and the last event, UTC."""


def question_of(text: str) -> tuple[tuple[str, str], ...]:
    """Parses the comment at the head of a study file into (label, text) pairs.

    `# Question: ...` becomes ("Question", "..."); a line without a label gets "". An indented line
    continues the one above.
    """
    found: list[tuple[str, str]] = []
    for line in text.splitlines():
        # only the head counts: comments further down explain single settings
        if not line.startswith("#"):
            break
        content = line[1:].removeprefix(" ").rstrip()
        if content.startswith("yaml-language-server") or not content:
            continue
        label = re.match(r"([A-Z][a-z]+): +(.*)", content)
        if label:
            found.append((label[1], label[2]))
        elif content.startswith(" ") and found:
            found[-1] = (found[-1][0], f"{found[-1][1]} {content.strip()}")
        else:
            found.append(("", content.strip()))
    return tuple(found)


def failures(
    states: Iterable[TrialState], names: Mapping[str, str], most: int = MOST_FAILURES
) -> tuple[tuple[Failure, ...], int]:
    """Returns the failed, cancelled and excluded trials, and the number of those not listed."""
    found = [state for state in states if state.state in ("failed", "cancelled", "excluded")]
    listed = tuple(
        Failure(
            names.get(state.key, state.role if state.role == "teacher" else state.key[:8]),
            state.key,
            state.state,
            state.last.failure_kind or "",
            state.epoch,
            state.last.reason or "",
            (state.last.traceback or "")[-_LONGEST_TRACEBACK:],
        )
        for state in found[:most]
    )
    return listed, len(found) - len(listed)


def budget(
    log: Log, study: str, states: Sequence[TrialState], content: Mapping[str, Any]
) -> StudyCost:
    """Returns the resources that a study has used, from its rows in the log."""
    order = Counter(spaced(state.state) for state in states if state.role == "student")
    # the epochs that this study trained; a shared trial counts only where it ran
    of_study = log.epochs.filter(pc.equal(log.epochs["study"], study))
    speed = pc.approximate_median(of_study["images_per_s"]).as_py()
    search = content.get("search") or {}
    return StudyCost(
        dict(order.most_common()),
        len(of_study),
        seconds_used(log, study) / 3600,
        gpu_hours_used(log, study),
        sum(state.seconds or 0.0 for state in states if state.study == study),
        None if speed is None else float(speed),
        pc.max(of_study["peak_memory_bytes"]).as_py(),
        {name: search[name] for name in ("trials", "hours", "gpu_hours") if search.get(name)},
    )


def study_provenance(states: Sequence[TrialState]) -> Provenance:
    """Returns the provenance of results, from the last event of each trial."""
    # the deciding event of each trial: an earlier attempt may have run elsewhere
    last = [state.last for state in states]
    versions: dict[str, Counter[str]] = {}
    for event in last:
        for package, version in (event.versions or {}).items():
            versions.setdefault(package, Counter())[version] += 1
    times = sorted(event.time for event in last)
    return Provenance(
        commits=_counted(
            (commit_text(event.commit[:12], dirty=event.dirty) if event.commit else None)
            for event in last
        ),
        data=_counted(event.data_id for event in last),
        teachers=_counted(event.teacher_id for event in last),
        hosts=_counted(event.host for event in last),
        devices=_counted(event.device for event in last),
        versions={package: dict(found.most_common()) for package, found in versions.items()},
        first=f"{times[0]:%Y-%m-%d %H:%M}" if times else "",
        last=f"{times[-1]:%Y-%m-%d %H:%M}" if times else "",
    )


def _counted(values: Iterable[str | None]) -> dict[str, int]:
    return dict(Counter(value for value in values if value is not None).most_common())
