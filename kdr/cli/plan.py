"""`plan`: what a study is going to run, before anything runs. Without torch, Ray, and often without the data."""

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from kdr.cli.options import DEFAULT_STORAGE, JsonOption, SetOption, StorageOption, StudyFile

if TYPE_CHECKING:
    from kdr.config.study import Study
    from kdr.plan.expand import StudyPlan
    from kdr.storage import Storage

DataCheck = Literal["none", "headers", "full"]


def command(
    study: StudyFile,
    storage: StorageOption = DEFAULT_STORAGE,
    set_: SetOption = None,
    check_data: Annotated[
        DataCheck,
        typer.Option(
            "--check-data",
            help="Also read the data: the headers of all images, as `run` does, or every pixel. Generates it if need be.",
        ),
    ] = "none",
    json_: JsonOption = False,
) -> None:
    """Show what a study is going to run, and every mistake in it, before anything runs.

    For example:

    python orchestrate.py plan search_spaces/quickstart.yaml

    python orchestrate.py plan search_spaces/quickstart.yaml --set search.trials=40 --check-data full
    """
    from kdr.config.study import read_study
    from kdr.storage import Storage

    chosen, place = read_study(study, set_ or ()), Storage.at(storage)
    plan, unknown = _plan(chosen, place)
    data_lines = [] if check_data == "none" else _checked_data(chosen, place, check_data)
    facts = _facts(plan, unknown, place)
    if json_:
        import dataclasses

        from kdr.cli.output import json_text

        rows = [dataclasses.asdict(row) for row in plan.parameters]
        content = {**facts, "parameters": rows, "warnings": plan.warnings, "data": data_lines}
        print(json_text(content))
        return
    _print(facts, plan, data_lines)


def _plan(study: "Study", storage: "Storage") -> tuple["StudyPlan", str]:
    """The plan, and why known trials cannot be counted here; empty if they can."""
    from kdr.errors import DataError, WeightsError
    from kdr.plan.expand import expand_study
    from kdr.run.trial_identity import trial_maker

    known: frozenset[str] = frozenset()
    if storage.log.exists():
        from kdr.results.reader import known_keys, read_log

        known = known_keys(read_log(storage))
    try:
        return expand_study(study, make_trial=trial_maker(study, storage), known=known), ""
    except (DataError, WeightsError) as error:
        return expand_study(study, make_trial=None, known=known), str(error).splitlines()[0]


def _checked_data(study: "Study", storage: "Storage", check: Literal["headers", "full"]) -> list[str]:
    from kdr.data.splits import open_splits

    splits = open_splits(study.base.data, storage, check=check)
    return [f"training: {splits.train.summary()}", f"evaluation: {splits.evaluation.summary()}"]


def _facts(plan: "StudyPlan", unknown: str, storage: "Storage") -> dict[str, object]:
    base, search = plan.study.base, plan.study.search
    student = f"{base.student.detector} {base.student.backbone}, {base.training.epochs} epochs"
    facts: dict[str, object] = {
        "study": plan.study.study,
        "data": _data_line(plan.study),
        "student": student,
        "methods": ", ".join(base.distill.methods()) or "none: plain training",
    }
    if base.teacher is not None and base.needs_teacher:
        state = {True: ", trained already", False: ", trained first", None: ""}[plan.teacher_known]
        layout = f", weights of {base.teacher.weights_layout}" if base.teacher.weights_layout else ""
        facts["teacher"] = f"{base.teacher.detector} {base.teacher.backbone}{layout}{state}"
    if search is not None:
        kind = next(name for name in ("tpe", "random", "grid") if getattr(search.sampler, name) is not None)
        stop = next((name for name in ("asha", "median") if getattr(search.stop_early, name) is not None), "none")
        facts |= {"searches": f"{search.metric} with {kind}", "early stopping": stop}
        if search.hours is not None:
            facts["hours"] = search.hours
        if search.gpu_hours is not None:
            facts["GPU-hours"] = f"{search.gpu_hours:g}, {_gpu_hours_used(plan.study.study, storage):.1f} of them used"
    facts["trials"] = "as many as the budget allows" if plan.num_trials is None else plan.num_trials
    if unknown:
        facts["known already"] = f"cannot be counted here: {unknown}"
    elif plan.num_certain:
        facts["known already"] = f"{plan.num_known} of {plan.num_certain}"
    facts["log"] = str(storage.log)
    return facts


def _gpu_hours_used(study: str, storage: "Storage") -> float:
    from kdr.results.reader import read_log
    from kdr.results.usage import gpu_hours_used

    return gpu_hours_used(read_log(storage), study)


def _data_line(study: "Study") -> str:
    data = study.base.data
    place = (
        data.train_annotations if data.dataset == "coco" else f"{data.num_train} training and {data.num_val} validation images"
    )
    split = f", evaluated on {data.search_split:g} of the training images" if data.search_split else ""
    return f"{data.dataset}: {place}{split}"


def _print(facts: dict[str, object], plan: "StudyPlan", data_lines: list[str]) -> None:
    from kdr.cli.output import plain_table, print_table

    print(plain_table(["", ""], [(name, str(value)) for name, value in facts.items()]).strip("\n"))
    for line in data_lines:
        print(line)
    if plan.parameters:
        print()
        rows = [[row.path, row.kind, row.values, row.condition] for row in plan.parameters]
        print_table(["parameter", "kind", "values", "drawn when"], rows)
    for warning in plan.warnings:
        print(f"\nwarning: {warning}")
