"""The data of a forest plot: differences with intervals, seeds and verdicts."""

from collections.abc import Sequence
from dataclasses import dataclass

from kdr.report.ablation_table import AblationRow, AblationTable, EffectRow
from kdr.report.effects import Word
from kdr.report.tables.ablation_grid import result

MOST_ROWS = 40


@dataclass(frozen=True)
class ForestRow:
    """One arm, or one effect of a factorial."""

    name: str
    difference: float
    """Arm minus reference, in the unit of the table (points of AP)."""
    interval: tuple[float, float] | None
    """95 % interval, not adjusted."""
    of_seeds: tuple[tuple[int, float], ...]
    """(seed, difference); empty if seeds are not paired."""
    word: Word
    text: str
    """The verdict with its addition, such as `undecided (3 more seeds)`."""


@dataclass(frozen=True)
class Forest:
    """All differences of the tested measure."""

    title: str
    """The tested measure with its unit."""
    reference: str
    margin: float | None
    """In the unit of the rows."""
    rows: tuple[ForestRow, ...]
    """In the order of the table."""
    num_left_out: int = 0
    """Number of rows that are not drawn, those with the smallest differences."""


def forest(table: AblationTable, most: int = MOST_ROWS) -> Forest | None:
    """Returns the forest plot of a table; None if no measure is tested or nothing is compared."""
    measure = table.tested
    if measure is None:
        return None
    rows = [
        row
        for row in table.all_rows
        if row.verdict is not None and row.effect_on(measure.name) is not None
    ]
    if not rows:
        return None
    # chosen by size, but drawn in the order of the table
    kept = set(most_different(table, rows, most))
    drawn = tuple(_row(row, table) for row in rows if row.name in kept)
    margin = None if table.margin is None else table.margin * measure.scale
    return Forest(measure.title, table.reference, margin, drawn, len(rows) - len(drawn))


def most_different(
    table: AblationTable, rows: Sequence[AblationRow | EffectRow], most: int
) -> list[str]:
    """Returns the names of the rows with the largest differences; rows without one come last."""

    def size(row: AblationRow | EffectRow) -> float:
        effect = row.effect_on(table.tested.name) if table.tested is not None else None
        # arms without a difference come last, and are dropped first
        return -1.0 if effect is None else abs(effect.difference)

    return [row.name for row in sorted(rows, key=size, reverse=True)[:most]]


def _row(row: AblationRow | EffectRow, table: AblationTable) -> ForestRow:
    assert table.tested is not None
    assert row.verdict is not None
    measure = table.tested
    effect = row.effect_on(measure.name)
    assert effect is not None
    low_high = effect.interval
    return ForestRow(
        row.name,
        effect.difference * measure.scale,
        None if low_high is None else (low_high[0] * measure.scale, low_high[1] * measure.scale),
        # an unpaired seed has no difference of its own
        _of_seeds(row, table) if isinstance(row, AblationRow) and effect.paired else (),
        row.verdict.word,
        result(row),
    )


def _of_seeds(row: AblationRow, table: AblationTable) -> tuple[tuple[int, float], ...]:
    assert table.tested is not None
    measure = table.tested
    [reference] = [other for other in table.rows if other.name == table.reference]
    values, expected = (it.summaries[measure.name].values for it in (row, reference))
    return tuple(
        (seed, (values[seed] - expected[seed]) * measure.scale)
        for seed in values
        if seed in expected
    )
