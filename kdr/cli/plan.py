"""`plan`: shows what a study would run, without torch and Ray, and mostly without the data."""

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from kdr.cli.options import DEFAULT_STORAGE, JsonOption, SetOption, StorageOption, StudyFile

if TYPE_CHECKING:
    from kdr.config.study import Study
    from kdr.plan.expand import ArmPlan, StudyPlan
    from kdr.results.reader import Log
    from kdr.storage.layout import Storage

DataCheck = Literal["none", "headers", "full"]


def command(
    study: StudyFile,
    storage: StorageOption = DEFAULT_STORAGE,
    set_: SetOption = None,
    check_data: Annotated[
        DataCheck,
        typer.Option(
            "--check-data",
            help=(
                "Also check the data: the header of every image, as `kdr run` does, or every "
                "pixel. Generates missing shapes data."
            ),
        ),
    ] = "none",
    probe: Annotated[
        bool,
        typer.Option(
            "--probe",
            help=(
                "Train a few steps of the baseline in this process, and estimate the cost of the "
                "study."
            ),
        ),
    ] = False,
    json_: JsonOption = False,
) -> None:
    """Show what a study would run, and every mistake in its file.

    For example:

    kdr plan search_spaces/quickstart.yaml

    kdr plan search_spaces/quickstart.yaml --set search.trials=40 --check-data full
    """
    from kdr.cli.plan_facts import missing_paths, plan_facts
    from kdr.config.study import read_study
    from kdr.storage.layout import Storage

    chosen, place = read_study(study, set_ or ()), Storage.at(storage)
    log = _read_log(place)
    missing = missing_paths(chosen)
    plan, unknown = _plan(chosen, place, log)
    # the list below says more than the first error
    unknown = "files are missing, see below" if unknown and missing else unknown
    data_lines = [] if check_data == "none" else _checked_data(chosen, place, check_data)
    facts = plan_facts(plan, log, unknown=unknown, probed=_probed(plan, place) if probe else "") | {
        "log": str(place.log)
    }
    warnings = [*plan.warnings, *_chosen_with(plan, log)]
    if json_:
        import dataclasses

        from kdr.report.formatting import json_text

        rows, arms = (
            [dataclasses.asdict(row) for row in table] for table in (plan.parameters, plan.arms)
        )
        print(
            json_text(
                {
                    **facts,
                    "parameters": rows,
                    "arms": arms,
                    "warnings": warnings,
                    "missing_paths": [
                        {"setting": setting, "path": path} for setting, path in missing
                    ],
                    "checked_data": data_lines,
                }
            )
        )
        return
    _print(facts, plan, data_lines, warnings, missing)


def _read_log(storage: "Storage") -> "Log | None":
    """Returns the log, or None if there is none yet: a first plan does not import pyarrow."""
    if not storage.log.exists():
        return None
    from kdr.results.pandas_free import start_without_pandas
    from kdr.results.reader import read_log

    start_without_pandas()
    return read_log(storage)


def _plan(study: "Study", storage: "Storage", log: "Log | None") -> tuple["StudyPlan", str]:
    """Returns the plan, and why known trials cannot be counted here; "" if they can."""
    from kdr.errors import DataError, WeightsError
    from kdr.plan.expand import expand_study
    from kdr.run.trial_identity import trial_maker

    known: frozenset[str] = frozenset()
    if log is not None:
        from kdr.results.reader import known_keys

        known = known_keys(log)
    try:
        return expand_study(study, make_trial=trial_maker(study, storage), known=known), ""
    except (DataError, WeightsError) as error:
        # keys need fingerprints of data and weights; everything else can be planned without them,
        # for example on a laptop for a cluster
        return expand_study(study, make_trial=None, known=known), str(error).splitlines()[0]


def _checked_data(
    study: "Study", storage: "Storage", check: Literal["headers", "full"]
) -> list[str]:
    from kdr.data.splits import open_splits

    splits = open_splits(study.base.data, storage, check=check)
    return [f"training: {splits.train.summary()}", f"evaluation: {splits.evaluation.summary()}"]


def _probed(plan: "StudyPlan", storage: "Storage") -> str:
    """Estimates the cost of all trials from a few steps of the baseline."""
    from kdr.report.formatting import duration
    from kdr.run.attempt.logged_fit import has_weights, teacher_of
    from kdr.run.trial_identity import trial_maker
    from kdr.training.probe import probe

    trial = trial_maker(plan.study, storage)(plan.base)
    teacher = teacher_of(trial)
    # a teacher that is already trained costs nothing
    if teacher is not None and has_weights(teacher, storage):
        teacher = None
    *of_teacher, one = probe(
        trial, teacher, storage=storage, loader_workers=plan.study.resources.loader_workers
    )
    num = len(plan.missing) if plan.study.search is None else plan.num_trials or 1
    seconds = num * one.seconds + sum(cost.seconds for cost in of_teacher)
    first = f", {duration(of_teacher[0].seconds)} of it for the teacher" if of_teacher else ""
    return (
        f"{duration(seconds)} for {num} trials one after the other in this process{first}: "
        f"{one.step_s:.2g} s per step, {one.evaluation_s:.2g} s per evaluation of the baseline"
        + (
            f"; it fits into memory with {one.micro_batch} images at a time"
            if one.micro_batch is not None
            else ""
        )
    )


def _chosen_with(plan: "StudyPlan", log: "Log | None") -> list[str]:
    """Returns warnings if the settings of an ablation were chosen on its own seeds."""
    if plan.study.ablation is None or log is None:
        return []
    from kdr.report.followup.choice import choice_warnings

    return choice_warnings(log, plan.base, plan.study.ablation.all_seeds)


def _print(
    facts: dict[str, object],
    plan: "StudyPlan",
    data_lines: list[str],
    warnings: list[str],
    missing: list[tuple[str, str]],
) -> None:
    from kdr.cli.output import plain_table, print_table

    print(plain_table(["", ""], [(name, str(value)) for name, value in facts.items()]).strip("\n"))
    for line in data_lines:
        print(line)
    if plan.parameters:
        print()
        rows = [[row.path, row.kind, row.values, row.condition] for row in plan.parameters]
        print_table(["parameter", "kind", "values", "drawn when"], rows)
    if plan.arms:
        print()
        known = [] if plan.num_known is None else ["known"]
        arms = [[arm.name, *([arm.num_known] if known else []), _changes(arm)] for arm in plan.arms]
        print_table(["arm", *known, "changes"], arms)
    for warning in warnings:
        print(f"\nwarning: {warning}")
    if missing:
        print("\nMissing on this machine:")
        print_table(["setting", "path"], missing)
        print("Fill in the paths in the study file, or run `kdr plan` where the files are.")


def _changes(arm: "ArmPlan") -> str:
    from kdr.config.canonical import value_text

    changes = ", ".join(f"{path} = {value_text(value)}" for path, value in arm.changes.items())
    return (changes or "nothing") + (f" (the same trial as '{arm.same_as}')" if arm.same_as else "")
