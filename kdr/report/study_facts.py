"""What a reader wants to know of a study beside its numbers: its question, what it cost, what
failed, and where it came from.
"""

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
_LONGEST_TRACEBACK = 6000  # letters; the end of a traceback says what happened


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
    """What a study has used."""

    counts: Mapping[str, int]
    """Students by state, in words, the most frequent first."""
    num_epochs: int
    hours: float
    """Wall-clock hours in which it trained."""
    gpu_hours: float
    trial_seconds: float
    """Training time summed over its trials, teachers included."""
    images_per_s: float | None
    """Median over epochs."""
    peak_memory_bytes: int | None
    """Most on a GPU; None without one."""
    limits: Mapping[str, float]
    """The budget that the study declares: trials, hours, gpu_hours."""


@dataclass(frozen=True)
class Provenance:
    """Where the results came from: each distinct value with the number of trials."""

    commits: Mapping[str, int]
    data: Mapping[str, int]
    teachers: Mapping[str, int]
    hosts: Mapping[str, int]
    devices: Mapping[str, int]
    versions: Mapping[str, Mapping[str, int]]
    """By package."""
    first: str
    last: str
    """Times of the first event and the last, UTC."""


def question_of(text: str) -> tuple[tuple[str, str], ...]:
    """The comment at the head of a study file as (label, text): `# Question: ...` gives
    ("Question", "..."); no label is "".

    A line that begins with spaces goes on with the one before it.
    """
    found: list[tuple[str, str]] = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        said = line[1:].removeprefix(" ").rstrip()
        if said.startswith("yaml-language-server") or not said:
            continue
        label = re.match(r"([A-Z][a-z]+): +(.*)", said)
        if label:
            found.append((label[1], label[2]))
        elif said.startswith(" ") and found:
            found[-1] = (found[-1][0], f"{found[-1][1]} {said.strip()}")
        else:
            found.append(("", said.strip()))
    return tuple(found)


def failures(
    states: Iterable[TrialState], names: Mapping[str, str], most: int = MOST_FAILURES
) -> tuple[tuple[Failure, ...], int]:
    """The trials that came to nothing, and how many more there are than are listed."""
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
    """What a study has used, from its rows."""
    order = Counter(spaced(state.state) for state in states if state.role == "student")
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
    """Where the results came from, over the events that decided each trial's state."""
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
