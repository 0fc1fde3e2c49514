"""The last sections of every page: budget, failures and provenance."""

from collections.abc import Mapping, Sequence

from kdr.report.formatting import MODIFIED, duration
from kdr.report.page.parts import Fact, LongText, Section
from kdr.report.study_facts import Failure, Provenance, StudyCost


def budget_section(
    study: str, used: StudyCost, failed: tuple[Failure, ...], num_more: int
) -> Section:
    """Returns the section on budget and failures."""
    units = {"gpu_hours": "GPU-hours"}
    declared = ", ".join(
        f"{value:g} {units.get(name, name)}" for name, value in used.limits.items()
    )
    speed, memory = used.images_per_s, used.peak_memory_bytes
    facts = {
        "Trials": (
            ", ".join(f"{count} {state}" for state, count in used.counts.items()) or "none started"
        ),
        "Declared budget": declared,
        "Epochs trained": f"{used.num_epochs}",
        "Training time, summed over trials": duration(used.trial_seconds),
        "Wall-clock training time": duration(used.hours * 3600),
        "GPU-hours": f"{used.gpu_hours:.2f}" if used.gpu_hours else "none: no GPU was used",
        "Training images per second (median)": "" if speed is None else f"{speed:.0f}",
        "Peak GPU memory": f"{memory / 2**30:.2f} GiB" if memory else "",
    }
    lead = [] if failed else ["No trial failed, was cancelled or excluded."]
    lead += (
        [f"{num_more} more are not listed here; `kdr status {study}` lists all."]
        if num_more
        else []
    )
    # an empty value means that the fact does not apply, such as GPU memory on a CPU
    shown = tuple(Fact(name, (value,)) for name, value in facts.items() if value)
    return Section("budget", "Budget and failures", tuple(lead), facts=shown, failures=failed)


def provenance_section(
    found: Provenance, *, log_folder: str, damaged: Sequence[str], config: str
) -> Section:
    """Returns the section on provenance.

    Args:
        found: provenance of the trials.
        log_folder: folder of the log.
        damaged: damaged files of the log, which were skipped.
        config: the study file of the last run.
    """
    # results of different code or data are not comparable, which must be read first
    several = {"commits": found.commits, "data versions": found.data}
    lead = [
        f"The results come from {len(values)} {name}."
        for name, values in several.items()
        if len(values) > 1
    ]
    if any(commit.endswith(MODIFIED) for commit in found.commits):
        lead.append("Some come from code with uncommitted changes.")
    lead += [f"Skipped a damaged file: {path}" for path in damaged]
    facts = {
        "Commit": _counts(found.commits),
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
    texts = (LongText("Study file of the last run", config),) if config else ()
    return Section("provenance", "Provenance", tuple(lead), facts=shown, texts=texts)


def _counts(values: Mapping[str, int]) -> tuple[str, ...]:
    return (
        tuple(values)
        if len(values) == 1
        else tuple(f"{value} ({count} trials)" for value, count in values.items())
    )
