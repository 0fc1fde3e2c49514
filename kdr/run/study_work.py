"""The work left in a study: its missing trials, and the teachers that they need."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from kdr.config.study import Study
from kdr.config.trial import Trial, TrialConfig
from kdr.results.reader import Log, read_log
from kdr.results.writer import LogWriter
from kdr.run.attempt.logged_fit import has_weights, teacher_of
from kdr.run.kept_weights import KeptWeights
from kdr.run.trial_identity import trial_maker
from kdr.run.trial_list import TrialList
from kdr.storage.layout import Storage


@dataclass(frozen=True)
class StudyWork:
    """The work left in a study."""

    make_trial: Callable[[TrialConfig], Trial]
    """Gives a trial its identity."""
    listed: TrialList | None
    """The study's trials; None for a search."""
    untrained: tuple[Trial, ...]
    """Trials that train the missing teachers."""
    storage: Storage
    rerun: bool
    """Whether trials run again even if their results are known."""

    def still_untrained(self, past: Log) -> list[Trial]:
        """Returns the teachers that still have to be trained, according to a later log."""
        return _untrained(self.untrained, past, self.storage, rerun=self.rerun)


def work_of(study: Study, storage: Storage, *, rerun: bool) -> StudyWork | None:
    """Returns the work left in a study; None if there is none.

    Writes which trials the study uses, and cleans up after drivers that were killed before they
    could. Never None for a search: only its sampler knows when nothing is left.
    """
    make_trial = trial_maker(study, storage)
    past = read_log(storage)
    listed = None if study.search is not None else TrialList(study, make_trial)
    if listed is None:
        # the base trial represents all: a point with another teacher trains its teacher in its
        # attempt
        missing = [make_trial(study.base)]
    else:
        missing = _noted(listed, study, storage, past, rerun=rerun)
        if not missing:
            # removes weights that are not among the best, as the last trial's end would have
            KeptWeights(storage, study.keep_weights, listed.ended(past))
            return None
    teachers = {
        teacher.key: teacher for trial in missing if (teacher := teacher_of(trial)) is not None
    }
    untrained = _untrained(teachers.values(), past, storage, rerun=rerun)
    for key in teachers.keys() - {teacher.key for teacher in untrained}:
        storage.forget_progress(key)  # left by a process killed right after the teacher completed
    return StudyWork(make_trial, listed, tuple(untrained), storage, rerun)


def _noted(
    listed: TrialList, study: Study, storage: Storage, past: Log, *, rerun: bool
) -> list[Trial]:
    """Returns the trials of a list that have to run, after noting in the log that the study uses
    them all.
    """
    with LogWriter(storage, study.study, after=past.newest_arm) as writer:
        listed.note(writer, past)
    return [one.trial for one in (listed.trials.values() if rerun else listed.missing(past))]


def _untrained(
    teachers: Iterable[Trial], past: Log, storage: Storage, *, rerun: bool
) -> list[Trial]:
    return [teacher for teacher in teachers if rerun or not _is_trained(teacher, past, storage)]


def _is_trained(teacher: Trial, past: Log, storage: Storage) -> bool:
    """Returns whether a teacher's training is over. Weights alone do not prove it: a process killed
    between writing them and logging the event resumes.
    """
    state = past.states().get(teacher.key)
    return has_weights(teacher, storage) and (
        state is None or state.state not in ("running", "interrupted")
    )
