"""One arm against another over their seeds: what may be compared, in pairs or not, and what a
reader must be told.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kdr.report.arm_trials import ArmTrial, ArmTrials
from kdr.report.effects import Effect, paired_effect, unpaired_effect

_CHANGES_BATCHES = ("data.", "training.batch_size")
"""Settings that decide which pixels are in a batch; arms that differ in one of them share no
batches and are no pairs."""


@dataclass(frozen=True)
class Comparison:
    """What one measure says of an arm beside another."""

    effect: Effect | None
    """None without a seed that both have completed, or where both are the same trials."""
    same_trials: bool = False
    """Whether both arms are the same trials, so that there is nothing to compare."""
    notes: tuple[str, ...] = ()
    """What a reader must know, each beginning with the arm's name."""


def compared(arm: ArmTrials, reference: ArmTrials, measure: str) -> Comparison:
    """Compares an arm with another one, seed by seed.

    A seed that either has not completed is left out. Trials of one seed whose first batches differ
    are no pairs; such arms are compared as independent ones.
    """
    values, expected = arm.values(measure), reference.values(measure)
    seeds = [seed for seed in values if seed in expected]
    if seeds and all(arm.trials[seed].key == reference.trials[seed].key for seed in seeds):
        return Comparison(
            None, same_trials=True, notes=(f"{arm.name}: the same trials as {reference.name}.",)
        )
    if (why := not_paired(arm, reference)) is not None:
        return Comparison(
            unpaired_effect(list(values.values()), list(expected.values())), notes=(why,)
        )
    notes = list(_left_out(arm, reference, seeds, measure)) if values else []
    effect = (
        paired_effect([values[seed] for seed in seeds], [expected[seed] for seed in seeds])
        if seeds
        else None
    )
    if effect is not None and effect.n > 1 and effect.se is None:
        notes.append(
            f"{arm.name}: the same difference with every seed; without spread nothing can be "
            "tested."
        )
    return Comparison(effect, notes=tuple(notes))


def unequal_budget(arm: ArmTrials, reference: ArmTrials) -> str | None:
    """How the budgets of two arms differ, of the first seed where they do; None if they do not."""
    for one, other in _pairs(arm, reference):
        if one.budget.differs_from(other.budget):
            return f"{one.budget} against {other.budget}"
    return None


def not_paired(arm: ArmTrials, reference: ArmTrials) -> str | None:
    """Why trials of one seed are no pairs, by the hashes of their first batches; None if they are,
    or nothing is known.
    """
    seeds = [one.seed for one, other in _pairs(arm, reference) if _batches_differ(one, other)]
    if not seeds:
        return None
    settings, others = arm.settings(), reference.settings()
    changed = sorted(
        path for path in {*settings, *others} if settings.get(path) != others.get(path)
    )
    reasons = [path for path in changed if path.startswith(_CHANGES_BATCHES)]
    if reasons:
        return (
            f"{arm.name}: not paired, since it differs in {', '.join(reasons)}; compared as "
            "independent trials (Welch)."
        )
    return (
        f"{arm.name}: the pairing is broken. With {_seeds(seeds)} its first batch is not that of "
        f"{reference.name}, though no setting explains it; compared as independent trials "
        "(Welch). Look for other data, code or versions with table --cell."
    )


def unfinished(arm: ArmTrials) -> Iterator[str]:
    """What became of an arm's trials that are not completed, one line for each kind."""
    kinds: dict[str, list[int]] = {}
    for seed, trial in arm.trials.items():
        if not trial.is_done:
            kinds.setdefault(trial.why_not, []).append(seed)
    for kind, seeds in kinds.items():
        yield f"{arm.name}: {len(seeds)} of {len(arm.trials)} {kind}, {_seeds(seeds)}."


def _left_out(
    arm: ArmTrials, reference: ArmTrials, seeds: Sequence[int], measure: str
) -> Iterator[str]:
    alone = {
        reference.name: [seed for seed in arm.values(measure) if seed not in seeds],
        arm.name: [seed for seed in reference.values(measure) if seed not in seeds],
    }
    for lacking, left_out in alone.items():
        if left_out:
            yield (
                f"{arm.name}: {_seeds(left_out)} left out of its comparison, without a result of "
                f"{lacking}."
            )


def _pairs(arm: ArmTrials, reference: ArmTrials) -> Iterator[tuple[ArmTrial, ArmTrial]]:
    """Trials of one seed that both arms have completed."""
    for seed, trial in arm.trials.items():
        other = reference.trials.get(seed)
        if trial.is_done and other is not None and other.is_done:
            yield trial, other


def _batches_differ(one: ArmTrial, other: ArmTrial) -> bool:
    """Whether first batches of the same epoch differ; what is not in the log is not known to
    differ.
    """
    return any(first != second for first, second in zip(one.batches, other.batches, strict=False))


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
