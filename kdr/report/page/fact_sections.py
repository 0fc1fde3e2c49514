"""The last sections of every page: what the study used, what failed, and where the numbers came
from.
"""

from collections.abc import Mapping, Sequence

from kdr.report.formatting import duration, spaced
from kdr.report.page.parts import Fact, LongText, Section
from kdr.report.study_facts import Failure, Provenance, StudyCost


def budget_section(
    study: str, used: StudyCost, failed: tuple[Failure, ...], num_more: int
) -> Section:
    """What the study used, and what failed."""
    declared = ", ".join(f"{value:g} {spaced(name)}" for name, value in used.limits.items())
    speed, memory = used.images_per_s, used.peak_memory_bytes
    facts = {
        "Trials": (
            ", ".join(f"{count} {state}" for state, count in used.counts.items()) or "none begun"
        ),
        "Declared budget": declared,
        "Epochs trained": f"{used.num_epochs}",
        "Training time, summed over trials": duration(used.trial_seconds),
        "Time in which it trained": duration(used.hours * 3600),
        "GPU-hours": f"{used.gpu_hours:.2f}" if used.gpu_hours else "none: no GPU was held",
        "Training images per second, median": "" if speed is None else f"{speed:.0f}",
        "Most GPU memory in use": f"{memory / 2**30:.2f} GiB" if memory else "",
    }
    lead = [] if failed else ["No trial failed, was cancelled or excluded."]
    lead += (
        [f"{num_more} more are not listed: python orchestrate.py status {study} has them all."]
        if num_more
        else []
    )
    shown = tuple(Fact(name, (value,)) for name, value in facts.items() if value)
    return Section("budget", "Budget and failures", tuple(lead), facts=shown, failures=failed)


def provenance_section(
    found: Provenance, *, log_folder: str, damaged: Sequence[str], config: str
) -> Section:
    """Where the numbers came from.

    Args:
        found: of the trials.
        log_folder: where the log lies.
        damaged: files of the log that were passed over.
        config: the study as it was last run, as text.
    """
    several = {"commits of the code": found.commits, "versions of the data": found.data}
    lead = [
        f"The results come from {len(values)} {name}."
        for name, values in several.items()
        if len(values) > 1
    ]
    if any(commit.endswith("with changes") for commit in found.commits):
        lead.append("Some of them come from code with changes that were not committed.")
    lead += [f"Damaged, and not read: {path}" for path in damaged]
    facts = {
        "Commit of the code": _counts(found.commits),
        "Data": _counts(found.data),
        "Teacher": _counts(found.teachers),
        "Host": _counts(found.hosts),
        "Device": _counts(found.devices),
        "Results from": (f"{found.first} to {found.last} UTC",) if found.first else (),
        "Log": (log_folder,),
        "Versions": tuple(
            f"{package} {' and '.join(versions)}"
            for package, versions in sorted(found.versions.items())
        ),
    }
    shown = tuple(Fact(name, values) for name, values in facts.items() if values)
    texts = (LongText("The study as it was last run", config),) if config else ()
    return Section("provenance", "Provenance", tuple(lead), facts=shown, texts=texts)


def _counts(values: Mapping[str, int]) -> tuple[str, ...]:
    return (
        tuple(values)
        if len(values) == 1
        else tuple(f"{value} ({count} trials)" for value, count in values.items())
    )
