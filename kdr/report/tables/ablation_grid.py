"""An ablation's table as cells: rounded text for people, full numbers for programs."""

from collections.abc import Iterator

from kdr.report.ablation_table import AblationRow, AblationTable, EffectRow
from kdr.report.effects import ALPHA, MOST_SEEDS, Effect, Verdict
from kdr.report.formatting import counted
from kdr.report.measures import Measure
from kdr.report.tables.grid import Cell, Grid, decimals, interval, mean_sd, number, p_value

AP_IN_PERCENT = "AP in percent, as in papers (39.8 is 0.398 in the log), at the last epoch."


def result(row: AblationRow | EffectRow) -> str:
    """Returns a row's verdict in words, with the seeds that would decide it."""
    if isinstance(row, AblationRow) and row.is_reference:
        return "reference"
    # before the verdict: the same trials have no effect to judge
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
    """Returns the table for people: means with spread, differences, p, verdicts.

    The difference and verdict of decided rows are bold.
    """
    rows = table.all_rows
    columns, cells = ["arm", "n"], [_first_cells(row) for row in rows]
    for measure in table.measures:
        columns += _columns(measure, is_tested=measure == table.tested)
        for own, added in zip(cells, _measure_cells(table, measure), strict=True):
            own += added
    # a table of untested measures has neither column
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
    """Returns the table for programs: full numbers, and the keys of the trials."""
    # arms may have different factors; those that an arm lacks are empty
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
        # the keys come last, because there may be many
        rows.append((*own, " ".join(row.keys) if isinstance(row, AblationRow) else None))
    return Grid(
        _title(table), (*columns, "keys"), tuple(rows), (*_conventions(table), *table.notes)
    )


def _title(table: AblationTable) -> str:
    shown = (table.tested or table.measures[0]).title
    return f"{table.study}: {shown} by arm, with the difference from {table.reference}"


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
    """Returns one measure's cells for every row; all rows share their decimals."""
    rows = table.all_rows
    digits = decimals(_scaled(row.summaries[measure.name].sd, measure) for row in table.rows)
    effects = [row.effect_on(measure.name) for row in rows]
    # differences get their own decimals: pairing makes them less noisy than the means
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
    """Returns mean, standard deviation, difference and the bounds of its interval."""
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
    """Yields the notes that explain the columns."""
    if any(measure.is_ap for measure in table.measures):
        yield AP_IN_PERCENT
    tested = table.tested
    if tested is None:
        return
    # a factorial's effects are not differences between two arms
    if table.effects:
        difference = (
            "Effects: least squares with seeds as blocks; an interaction is half the change that "
            "one step makes to the effect of the other"
        )
    else:
        difference = f"Difference: arm minus {table.reference}, paired by seed"
    yield (
        f"n: completed seeds of those planned. ±: standard deviation over seeds. {difference}; "
        "95 % t interval, not adjusted."
    )
    margin = (
        ""
        if table.margin is None
        else f", no relevant effect if an equivalence test puts it within "
        f"±{table.margin * tested.scale:g} points"
    )
    yield (
        f"p: t test of {tested.name}, Holm-adjusted over {counted(table.family, 'comparison')}; "
        f"sign-flip p: exact, not adjusted. Result: helps or hurts if p < {ALPHA:g}{margin}; "
        "otherwise undecided, with the number of seeds that would decide it at this spread."
    )
    if any(row.is_declared for row in table.rows):
        yield (
            "†: the comparison that was declared beforehand; its p is not adjusted, and it does "
            "not count in the adjustment of the others."
        )
    if any(row.unequal for row in table.rows):
        yield "*: trained on an unequal budget, so the difference is not due to its settings alone."


def _words(verdict: Verdict, effect: Effect) -> str:
    if verdict.word != "undecided":
        # an effect can be certain and still too small to matter
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
    return f"undecided ({counted(verdict.more_seeds, 'more seed')})"


def _scaled(value: float | None, measure: Measure) -> float | None:
    return None if value is None else value * measure.scale


def _scaled_pair(pair: tuple[float, float] | None, measure: Measure) -> tuple[float, float] | None:
    return None if pair is None else (pair[0] * measure.scale, pair[1] * measure.scale)
