"""Compares one arm with another: which seeds count, whether they are paired, and notes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kdr.report.arm_trials import ArmTrial, ArmTrials
from kdr.report.effects import Effect, paired_effect, unpaired_effect
from kdr.report.formatting import seeds_text

_CHANGES_BATCHES = ("data.", "training.batch_size")
"""Settings that decide which pixels are in a batch. Arms that differ in one of them cannot be
paired."""


@dataclass(frozen=True)
class Comparison:
    """One measure of an arm compared with that of another."""

    effect: Effect | None
    """None if no seed is completed in both arms, or both are the same trials."""
    same_trials: bool = False
    """Whether both arms consist of the same trials, which leaves nothing to compare."""
    notes: tuple[str, ...] = ()
    """Caveats for the reader; each starts with the arm's name."""


def compared(arm: ArmTrials, reference: ArmTrials, measure: str) -> Comparison:
    """Compares an arm with another, seed by seed.

    A seed that either arm has not completed is left out. If the first batches of one seed differ,
    the trials are not pairs, and the arms are compared as independent samples (Welch).
    """
    values, expected = arm.values(measure), reference.values(measure)
    seeds = [seed for seed in values if seed in expected]
    # checked first: the same trials have equal batches, so they would pass as pairs without spread
    if seeds and all(arm.trials[seed].key == reference.trials[seed].key for seed in seeds):
        return Comparison(
            None, same_trials=True, notes=(f"{arm.name}: the same trials as {reference.name}.",)
        )
    if (why := not_paired(arm, reference)) is not None:
        return Comparison(
            unpaired_effect(list(values.values()), list(expected.values())), notes=(why,)
        )
    # an arm without any result is already named by `unfinished`
    notes = list(_left_out(arm, reference, seeds, measure)) if values else []
    effect = (
        paired_effect([values[seed] for seed in seeds], [expected[seed] for seed in seeds])
        if seeds
        else None
    )
    if effect is not None and effect.n > 1 and effect.se is None:
        notes.append(
            f"{arm.name}: the same difference for every seed; without spread there is no test."
        )
    return Comparison(effect, notes=tuple(notes))


def unequal_budget(arm: ArmTrials, reference: ArmTrials) -> str | None:
    """Returns the difference between two budgets, for the first seed that has one; None if no seed
    has.
    """
    for one, other in _pairs(arm, reference):
        if one.budget.differs_from(other.budget):
            return f"{one.budget} instead of {other.budget}"
    return None


def not_paired(arm: ArmTrials, reference: ArmTrials) -> str | None:
    """Returns the reason why trials of one seed are not pairs; None if they are, or if nothing is
    known.

    The evidence is the hash of each epoch's first batch: paired trials see the same images.
    """
    seeds = [one.seed for one, other in _pairs(arm, reference) if _batches_differ(one, other)]
    if not seeds:
        return None
    settings, others = arm.settings(), reference.settings()
    changed = sorted(
        path for path in {*settings, *others} if settings.get(path) != others.get(path)
    )
    # a changed image size is meant to change the batches; other settings must not
    reasons = [path for path in changed if path.startswith(_CHANGES_BATCHES)]
    if reasons:
        verb = "differs" if len(reasons) == 1 else "differ"
        return (
            f"{arm.name}: not paired, because {', '.join(reasons)} {verb}; compared as independent "
            "trials (Welch)."
        )
    return (
        f"{arm.name}: the pairing is broken. For {seeds_text(seeds)} its first batch differs from "
        f"that of {reference.name}, and no setting explains it; compared as independent trials "
        "(Welch). Use `kdr table --cell` to look for different data, code or versions."
    )


def unfinished(arm: ArmTrials) -> Iterator[str]:
    """Yields one note for each reason why trials of an arm have no result."""
    kinds: dict[str, list[int]] = {}
    for seed, trial in arm.trials.items():
        if not trial.is_done:
            kinds.setdefault(trial.why_not, []).append(seed)
    # grouped, because an arm with twelve seeds may fail twelve times for the same reason
    for kind, seeds in kinds.items():
        yield f"{arm.name}: {len(seeds)} of {len(arm.trials)} {kind}, {seeds_text(seeds)}."


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
                f"{arm.name}: {seeds_text(left_out)} left out of the comparison, because {lacking} "
                "has no result."
            )


def _pairs(arm: ArmTrials, reference: ArmTrials) -> Iterator[tuple[ArmTrial, ArmTrial]]:
    """Yields the trials of both arms, for each seed that both have completed."""
    for seed, trial in arm.trials.items():
        other = reference.trials.get(seed)
        if trial.is_done and other is not None and other.is_done:
            yield trial, other


def _batches_differ(one: ArmTrial, other: ArmTrial) -> bool:
    """Returns whether the first batches of any epoch differ; epochs missing in either count as
    equal.
    """
    return any(first != second for first, second in zip(one.batches, other.batches, strict=False))
