"""The page of a study: its question, results, cost and provenance, from the log."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from kdr.errors import ConfigError
from kdr.report.ablation_table import AblationTable, ablation_table
from kdr.report.arm_trials import ablation_of, logged_arms
from kdr.report.followup.study_text import study_text
from kdr.report.formatting import counted, duration, json_text, spaced
from kdr.report.measures import measure_of
from kdr.report.page.arm_sections import (
    arm_curves_section,
    forest_section,
    link_map_section,
    table_section,
)
from kdr.report.page.drawing import WORDS
from kdr.report.page.fact_sections import budget_section, provenance_section
from kdr.report.page.html import Page
from kdr.report.page.parts import Section, Tile
from kdr.report.page.search_sections import (
    early_and_cost_section,
    link_means_section,
    ranking_section,
    settings_section,
    trial_curves_section,
)
from kdr.report.progress import StudyProgress, study_progress, trial_names
from kdr.report.ranking import RankedTrial, count_states, ranking, searched_metric
from kdr.report.study_facts import budget, failures, study_provenance
from kdr.results.reader import Log, TrialState
from kdr.storage.files import StoredPath


def study_page(
    log: Log,
    study: str,
    *,
    now: datetime,
    log_folder: StoredPath,
    question: tuple[tuple[str, str], ...] = (),
    metric: str | None = None,
    command: str = "",
    reload_s: float | None = None,
) -> Page:
    """Builds the page of a study from its log so far.

    Args:
        log: the trial log.
        study: name of the study.
        now: current time, UTC.
        log_folder: folder of the log.
        question: the result of `question_of` for the study file.
        metric: one of COCO's metrics; the study's metric by default.
        command: the command that writes the page.
        reload_s: seconds after which the page of an unfinished study reloads itself.

    Raises:
        ConfigError: if there is no such metric.
    """
    metric = metric or searched_metric(log, study)
    content, progress = log.study_content(study), study_progress(log, study, now=now, metric=metric)
    table, arms = None, None
    if ablation_of(log, study) is not None:
        # a page has no option to allow unequal arms, so it marks them
        table = ablation_table(log, study, (metric,), allow_unequal=True)
        arms = logged_arms(log, study, (measure_of(metric),))
    trials, states = _trials(log, study, metric, progress), _states(log, progress)
    listed, num_more = failures(states, {trial.key: trial.name for trial in trials})
    search = content.get("search")
    found: list[Section | None]
    if table is not None and arms is not None:
        curves = arm_curves_section(log, table, arms, metric)
        found = [
            table_section(table),
            forest_section(table),
            curves,
            link_map_section(table, arms),
        ]
    else:
        found = [
            ranking_section(study, trials, metric, is_search=bool(search)),
            trial_curves_section(log, study, trials, metric),
            settings_section(study, trials, metric, search) if search else None,
            link_means_section(study, trials, metric),
        ]
    # every kind of study ends with these sections
    found += [
        early_and_cost_section(log, study, trials, metric, content),
        budget_section(study, budget(log, study, states, content), listed, num_more),
        provenance_section(
            study_provenance(states),
            log_folder=str(log_folder),
            damaged=[str(path) for path in log.damaged],
            config=_study_file(content, study),
        ),
    ]
    return Page(
        study=study,
        kind=_kind(content, table, metric),
        question=question,
        state=_state(progress, trials),
        tiles=_tiles(trials, table, metric),
        sections=tuple(section for section in found if section is not None),
        written=now,
        command=command,
        reload_s=None if progress.is_over else reload_s,
    )


def _trials(log: Log, study: str, metric: str, progress: StudyProgress) -> tuple[RankedTrial, ...]:
    """Returns the current students of the study, best first, named as in `kdr status`."""
    names, current = trial_names(log, study), {trial.key for trial in progress.trials}
    return tuple(
        replace(trial, name=names.get(trial.key, trial.name))
        for trial in ranking(log, study, metric)
        # trials of arms that were removed from the file stay in the log, not on the page
        if trial.key in current
    )


def _states(log: Log, progress: StudyProgress) -> list[TrialState]:
    states = log.states()
    return [states[trial.key] for trial in progress.trials]


def _study_file(content: Mapping[str, Any], study: str) -> str:
    """Returns the study file; as JSON if this version cannot read its settings."""
    try:
        return study_text(content, (), source=study)
    except ConfigError:
        return json_text(content, indent=2)


def _kind(content: Mapping[str, Any], table: AblationTable | None, metric: str) -> str:
    if table is not None:
        design = spaced(content["ablation"].get("design", "leave_one_out"))
        seeds = max(row.num_planned for row in table.rows)
        arms = f"{counted(len(table.rows), 'arm')} by {counted(seeds, 'seed')}"
        return f"Ablation ({design}): {arms}, compared by {metric} with {table.reference}"
    search = content.get("search")
    if search:
        settings = counted(len(search["parameters"]), "setting")
        return f"Search over {settings} for the highest {metric}; it does not measure effects"
    return "Single trial"


def _state(progress: StudyProgress, trials: Sequence[RankedTrial]) -> str:
    total = f" of {progress.total}" if progress.total is not None else ""
    counts = (
        ", ".join(f"{count} {state}" for state, count in count_states(trials).items())
        or "none started"
    )
    left = (
        ""
        if progress.is_over or progress.seconds_left is None
        else f", about {duration(progress.seconds_left)} left"
    )
    return f"{len(progress.students)}{total} trials ({counts}){left}."


def _tiles(
    trials: Sequence[RankedTrial], table: AblationTable | None, metric: str
) -> tuple[Tile, ...]:
    measure = measure_of(metric)
    if table is not None:
        verdicts = [
            (row.verdict.word, row.name) for row in table.all_rows if row.verdict is not None
        ]
        # one tile per verdict that occurs, in the order of WORDS
        counts = Counter(word for word, _ in verdicts)
        [reference] = [row.summaries[metric] for row in table.rows if row.name == table.reference]
        mean = "none" if reference.mean is None else f"{reference.mean * measure.scale:.1f}"
        of_reference = Tile(
            mean,
            f"{measure.title} of {table.reference}, mean of "
            f"{counted(reference.n, 'completed seed')}",
        )
        return of_reference, *(
            Tile(
                str(counts[word]),
                f"{word}{_named([name for found, name in verdicts if found == word])}",
                word,
            )
            for word in WORDS
            if counts[word]
        )
    best = next((trial for trial in trials if trial.rank == 1), None)
    value = "none" if best is None or best.value is None else f"{best.value * measure.scale:.1f}"
    tiles = [Tile(value, f"best {measure.title}{_named([best.name]) if best else ''}")]
    tiles += [Tile(str(count), state) for state, count in count_states(trials).items()]
    return tuple(tiles)


def _named(names: Sequence[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f": {', '.join(names[:most])}{more}" if names else ""
