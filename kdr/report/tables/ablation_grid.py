"""An ablation's table as rows of text, rounded for readers, or of numbers in full for programs."""

from collections.abc import Iterator

from kdr.report.ablation_table import AblationRow, AblationTable, EffectRow
from kdr.report.effects import ALPHA, MOST_SEEDS, Effect, Verdict
from kdr.report.measures import Measure
from kdr.report.tables.grid import Cell, Grid, decimals, interval, mean_sd, number, p_value

AP_IN_PERCENT = (
    "AP in percent, as papers print it (39.8 stands for 0.398 in the log), at the last epoch."
)


def result(row: AblationRow | EffectRow) -> str:
    """The word on a row, and how many more seeds would decide it."""
    if isinstance(row, AblationRow) and row.is_reference:
        return "reference"
    if isinstance(row, AblationRow) and row.is_same_trials:
        return "same trials"
    verdict = row.verdict
    effect = (
        row.effect
        if isinstance(row, EffectRow)
        else next((it.effect for it in row.comparisons.values() if it.effect), None)
    )
    if verdict is None or effect is None:
        return "" if isinstance(row, EffectRow) or row.num_done else "no result"
    return _words(verdict, effect)


def reading_grid(table: AblationTable) -> Grid:
    """The table as people read it: means with spread, differences, p, and the word. Decided rows
    stand out.
    """
    rows = table.all_rows
    columns, cells = ["arm", "n"], [_first_cells(row) for row in rows]
    for measure in table.measures:
        columns += _columns(measure, is_tested=measure == table.tested)
        for own, added in zip(cells, _measure_cells(table, measure), strict=True):
            own += added
    stand_out = [columns.index(name) for name in ("difference", "result") if name in columns]
    decided = [
        index
        for index, row in enumerate(rows)
        if row.verdict is not None and row.verdict.word != "undecided"
    ]
    return Grid(
        title=_title(table),
        columns=tuple(columns),
        rows=tuple(map(tuple, cells)),
        notes=(*_conventions(table), *table.notes),
        bold=frozenset((index, column) for index in decided for column in stand_out),
        rules=frozenset({len(table.rows)} if table.effects else ()),
    )


def data_grid(table: AblationTable) -> Grid:
    """The same with every number in full, and the keys of the trials behind it, for programs."""
    factors = list(dict.fromkeys(factor for row in table.rows for factor in row.levels))
    columns = ["arm", "kind", *factors, "seeds done", "seeds planned"]
    columns += [
        f"{measure.title} {name}"
        for measure in table.measures
        for name in ("mean", "sd", "difference", "low", "high")
    ]
    if table.tested is not None:
        columns += [
            "p",
            "p adjusted",
            "sign-flip p",
            "equivalence p adjusted",
            "result",
            "more seeds",
        ]
    rows = []
    for row in table.all_rows:
        own: list[Cell]
        if isinstance(row, AblationRow):
            kind = "reference" if row.is_reference else "contrast" if row.is_declared else "arm"
            own = [
                row.name,
                kind,
                *(row.levels.get(factor) for factor in factors),
                row.num_done,
                row.num_planned,
            ]
        else:
            own = [row.name, "effect", *(None for _ in factors), row.effect.n, None]
        for measure in table.measures:
            own += _numbers(row, measure)
        own += _tests(row, table.tested)
        rows.append((*own, " ".join(row.keys) if isinstance(row, AblationRow) else None))
    return Grid(
        _title(table), (*columns, "keys"), tuple(rows), (*_conventions(table), *table.notes)
    )


def _title(table: AblationTable) -> str:
    shown = (table.tested or table.measures[0]).title
    return f"{table.study}: {shown} by arm, and the difference to {table.reference}"


def _first_cells(row: AblationRow | EffectRow) -> list[Cell]:
    if isinstance(row, EffectRow):
        return [row.name, str(row.effect.n)]
    marks = f"{' †' if row.is_declared else ''}{' *' if row.unequal else ''}"
    return [f"{row.name}{marks}", f"{row.num_done}/{row.num_planned}"]


def _columns(measure: Measure, *, is_tested: bool) -> list[str]:
    if is_tested:
        return [measure.title, "difference", "95 % interval", "p", "sign-flip p", "result"]
    return [measure.title, f"{measure.name} difference"] if measure.is_ap else [measure.title]


def _measure_cells(table: AblationTable, measure: Measure) -> list[list[Cell]]:
    """One measure's cells of every row."""
    rows = table.all_rows
    digits = decimals(_scaled(row.summaries[measure.name].sd, measure) for row in table.rows)
    effects = [row.effect_on(measure.name) for row in rows]
    difference_digits = decimals(
        (_scaled(effect.sd, measure) for effect in effects if effect), default=digits
    )
    cells: list[list[Cell]] = []
    for row, effect in zip(rows, effects, strict=True):
        summary = row.summaries[measure.name] if isinstance(row, AblationRow) else None
        mean = (
            mean_sd(_scaled(summary.mean, measure), _scaled(summary.sd, measure), digits)
            if summary
            else ""
        )
        difference = (
            number(_scaled(effect.difference, measure), difference_digits, signed=True)
            if effect
            else ""
        )
        around = (
            interval(_scaled_pair(effect.interval, measure), difference_digits) if effect else ""
        )
        if measure == table.tested:
            p = p_value(row.verdict.p_adjusted) if row.verdict else ""
            cells.append(
                [
                    mean,
                    difference,
                    around,
                    p,
                    p_value(effect.sign_flip_p) if effect else "",
                    result(row),
                ]
            )
        else:
            cells.append([mean, f"{difference} {around}".strip()] if measure.is_ap else [mean])
    return cells


def _numbers(row: AblationRow | EffectRow, measure: Measure) -> list[Cell]:
    """Mean, standard deviation, difference and the bounds of its interval."""
    summary = row.summaries[measure.name] if isinstance(row, AblationRow) else None
    effect = row.effect_on(measure.name)
    bounds = (effect.interval if effect else None) or (None, None)
    values = (
        summary and summary.mean,
        summary and summary.sd,
        effect and effect.difference,
        *bounds,
    )
    return [_scaled(value, measure) for value in values]


def _tests(row: AblationRow | EffectRow, tested: Measure | None) -> list[Cell]:
    if tested is None:
        return []
    effect, verdict = row.effect_on(tested.name), row.verdict
    if effect is None or verdict is None:
        return [None, None, None, None, result(row), None]
    return [
        effect.p,
        verdict.p_adjusted,
        effect.sign_flip_p,
        verdict.tost_p_adjusted,
        result(row),
        verdict.more_seeds,
    ]


def _conventions(table: AblationTable) -> Iterator[str]:
    """What the columns mean, in a few sentences."""
    if any(measure.is_ap for measure in table.measures):
        yield AP_IN_PERCENT
    tested = table.tested
    if tested is None:
        return
    if table.effects:
        difference = (
            "Effects: least squares with seeds as blocks; an interaction is half of what one step "
            "adds to the other"
        )
    else:
        difference = f"Difference: arm minus {table.reference}, paired by seed"
    yield (
        f"n: seeds done of those planned. ±: standard deviation over seeds. {difference}; 95 % t "
        "interval, not adjusted."
    )
    margin = (
        ""
        if table.margin is None
        else f", no relevant effect if surely within ±{table.margin * tested.scale:g} points"
    )
    yield (
        f"p: t test of {tested.name}, Holm-adjusted over {table.family}; beside it the exact "
        f"sign-flip p, not adjusted. Result: helps or hurts if p < {ALPHA:g}{margin}, else "
        "undecided, with the seeds that would decide it at this spread."
    )
    if any(row.is_declared for row in table.rows):
        yield (
            "†: the one comparison declared beforehand; its p is not adjusted, and it is not "
            "counted among the others."
        )
    if any(row.unequal for row in table.rows):
        yield "*: had another budget, so that its difference is not that of its settings alone."


def _words(verdict: Verdict, effect: Effect) -> str:
    if verdict.word != "undecided":
        is_small = verdict.tost_p_adjusted is not None and verdict.tost_p_adjusted < ALPHA
        return (
            f"{verdict.word}, less than the margin"
            if is_small and verdict.word != "no relevant effect"
            else verdict.word
        )
    if verdict.more_seeds is None:
        return "undecided (one seed)" if effect.n < 2 else "undecided (no spread)"
    if verdict.more_seeds >= MOST_SEEDS:
        return f"undecided (over {MOST_SEEDS} more seeds)"
    return f"undecided ({verdict.more_seeds} more seed{'s' if verdict.more_seeds > 1 else ''})"


def _scaled(value: float | None, measure: Measure) -> float | None:
    return None if value is None else value * measure.scale


def _scaled_pair(pair: tuple[float, float] | None, measure: Measure) -> tuple[float, float] | None:
    return None if pair is None else (pair[0] * measure.scale, pair[1] * measure.scale)
