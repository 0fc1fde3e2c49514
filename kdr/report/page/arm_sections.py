"""The sections of an ablation's page: table, differences, learning curves, review links."""

from kdr.report.ablation_table import AblationTable
from kdr.report.arm_trials import LoggedArms
from kdr.report.learning_curves import LearningCurves, arm_curves
from kdr.report.measures import measure_of
from kdr.report.page.arm_figures import arm_curves_figure, forest_figure
from kdr.report.page.drawing import SERIES
from kdr.report.page.forest import Forest, forest, most_different
from kdr.report.page.link_figures import link_map_figure
from kdr.report.page.parts import MOST_DATA_ROWS, FigureBlock, Section, epochs_query, trials_query
from kdr.report.page.review_links import PATH, LinkMap, link_map
from kdr.report.tables.ablation_grid import reading_grid
from kdr.report.tables.grid import Grid
from kdr.results.reader import Log


def table_section(table: AblationTable) -> Section:
    """Returns the section with the table that `kdr table` prints."""
    lead = (
        ()
        if any(row.num_done for row in table.rows)
        else ("No trial is completed yet, so there is nothing to compare.",)
    )
    return Section("table", "Table", lead, table=reading_grid(table))


def forest_section(table: AblationTable) -> Section:
    """Returns the section with every difference and its interval."""
    found = forest(table)
    if found is None:
        nothing = "Nothing to compare yet: no seed is completed in both the reference and an arm."
        return Section("differences", "Differences", (nothing,))
    margin = (
        ""
        if found.margin is None
        else f" Differences inside the shaded band (±{found.margin:g}) are too small to matter."
    )
    caption = (
        "Each row is one effect with its 95 % t interval (not adjusted). Effects to the right of "
        "the line raise the metric."
        if table.effects
        else (
            "Each row is one comparison: the mean difference with its 95 % t interval (not "
            "adjusted). Small dots are single seeds. To the right of the line, an arm is better "
            f"than {found.reference}."
        )
    )
    # the caption says "each row", so a note must mention the missing rows
    left = (
        f"{found.num_left_out} rows with the smallest differences are not drawn; the table lists "
        "all."
    )
    block = FigureBlock(
        "figure-differences",
        (
            "Effects of the factors"
            if table.effects
            else f"Difference of each arm from {found.reference}"
        ),
        f"{caption}{margin}",
        forest_figure(found),
        _forest_grid(found),
        f"kdr table {table.study} --format csv",
        notes=(left,) if found.num_left_out else (),
    )
    return Section("differences", "Differences", figures=(block,))


def arm_curves_section(log: Log, table: AblationTable, arms: LoggedArms, metric: str) -> Section:
    """Returns the section with the learning curves of the arms."""
    others = [row for row in table.rows if row.name != table.reference]
    # one colour per arm, including the reference
    drawn = [table.reference, *most_different(table, others, SERIES - 1)]
    curves = arm_curves(log, arms.arms, metric, drawn=drawn)
    if not curves.num_points:
        return Section(
            "curves", "Learning curves", (f"No epoch with a value for {metric} is logged yet.",)
        )
    has_bands = any(group.band for group in curves.groups)
    block = FigureBlock(
        "figure-curves",
        f"{measure_of(metric).title} by epoch",
        "Thin lines are single seeds"
        + (
            "; thick lines are their mean, with a band of ±1 standard deviation"
            if has_bands
            else ""
        )
        + ". Click a name in the legend to hide or show it.",
        arm_curves_figure(curves, table.reference),
        _curves_grid(curves),
        epochs_query(table.study, metric),
        notes=(curves.left_out,) if curves.left_out else (),
    )
    return Section("curves", "Learning curves", figures=(block,))


def link_map_section(table: AblationTable, arms: LoggedArms) -> Section | None:
    """Returns the section on review links by arm; None if no arm changes them."""
    found = link_map(table, arms)
    if found is None:
        return None
    measure = table.tested or table.measures[0]
    block = FigureBlock(
        "figure-links",
        "Review links by arm, and the difference they make",
        f"Columns are links, coarse to fine. Dots are links that an arm shares with "
        f"{table.reference}; squares are links that it switches on (filled) or off (open), in the "
        f"colour of its result. Right: the difference in {measure.title} from {table.reference}, "
        "or the mean if the arm is not compared."
        + (
            " *: the arm also changes other settings."
            if any(arm.changes_more for arm in found.arms)
            else ""
        ),
        link_map_figure(found),
        _link_grid(found),
        trials_query(table.study, ["arm", "seed", "state", PATH, measure.name]),
    )
    return Section("links", "Review links", figures=(block,))


def _forest_grid(found: Forest) -> Grid:
    rows = tuple(
        (
            row.name,
            row.difference,
            *(row.interval or (None, None)),
            row.text,
            ", ".join(f"{seed}: {value:+.2f}" for seed, value in row.of_seeds),
        )
        for row in found.rows[:MOST_DATA_ROWS]
    )
    columns = ("comparison", "difference", "low", "high", "result", "by seed")
    return Grid(f"Differences from {found.reference}, {found.title}", columns, rows)


def _curves_grid(curves: LearningCurves) -> Grid:
    """Returns means by arm at the last epoch that all its seeds share; without a band, each
    seed's last epoch.
    """
    measure, rows = measure_of(curves.metric), []
    for group in curves.groups:
        if group.band is not None:
            # a mean after the last epoch that all seeds share would be over fewer seeds
            band = group.band
            rows.append(
                (
                    group.name,
                    f"{band.num_seeds} seeds",
                    band.epochs[-1],
                    band.means[-1] * measure.scale,
                )
            )
        else:
            rows += [
                (group.name, curve.name, curve.epochs[-1], curve.values[-1] * measure.scale)
                for curve in group.curves
            ]
    columns = ("arm", "seeds", "last epoch", measure.title)
    return Grid("Last epoch of each curve", columns, tuple(rows[:MOST_DATA_ROWS]))


def _link_grid(found: LinkMap) -> Grid:
    rows = tuple(
        (
            arm.name,
            *("on" if has else "off" for has in arm.links),
            arm.mean,
            arm.num_seeds,
            arm.difference,
            arm.text,
        )
        for arm in found.arms
    )
    return Grid(
        "Arms by review links", ("arm", *found.links, "mean", "n", "difference", "result"), rows
    )
