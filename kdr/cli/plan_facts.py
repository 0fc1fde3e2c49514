"""Facts of a plan, one line each: data, student, teacher, budget, cost."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kdr.config.data import ShapesData
    from kdr.config.study import Study
    from kdr.plan.expand import StudyPlan
    from kdr.results.reader import Log


def plan_facts(
    plan: "StudyPlan", log: "Log | None", *, unknown: str, probed: str
) -> dict[str, object]:
    """Returns the facts of a plan by name.

    Args:
        plan: the plan.
        log: the trial log; None if there is none yet.
        unknown: why known trials cannot be counted here; "" if they can.
        probed: the cost estimated by a probe; "" without one.
    """
    base = plan.base
    facts: dict[str, object] = {
        "study": plan.study.study,
        "data": _data(plan),
        "student": (
            f"{base.student.detector} {base.student.backbone}, {base.training.epochs} epochs"
        ),
        "methods": ", ".join(base.distill.methods()) or "none: plain training",
    }
    if plan.teacher is not None or (base.teacher is not None and base.needs_teacher):
        facts["teacher"] = _teacher(plan)
    facts |= _search_facts(plan.study, log) | _ablation_facts(plan)
    facts["trials"] = "as many as the budget allows" if plan.num_trials is None else plan.num_trials
    if unknown:
        facts["known already"] = f"cannot be counted here: {unknown}"
    elif plan.num_certain:
        facts["known already"] = f"{plan.num_known} of {plan.num_certain}"
    # a search chooses its trials as it goes, so the log cannot price them
    if plan.study.search is None or probed:
        facts["cost"] = probed or _logged_cost(plan, log)
    if plan.study.ablation is not None:
        facts["can decide"] = _decides(plan, log)
    return facts


def missing_paths(study: "Study") -> list[tuple[str, str]]:
    """Returns (setting, path) for each file and folder of the study that is missing here."""
    from pathlib import Path

    from kdr.plan.inputs import data_of, weights_files_of

    named = [
        (f"data.{setting}", getattr(data, setting))
        for data in data_of(study)
        if data.dataset == "coco"
        for setting in ("train_images", "train_annotations", "val_images", "val_annotations")
    ]
    named += [("weights", path) for path in weights_files_of(study)]
    return [
        (setting, path)
        for setting, path in dict.fromkeys(named)
        if not Path(path).expanduser().exists()
    ]


def _data(plan: "StudyPlan") -> str:
    data = plan.base.data
    place = data.train_annotations if data.dataset == "coco" else _num_images(data)
    split = (
        f", evaluated on {data.search_split:g} of the training images" if data.search_split else ""
    )
    return f"{data.dataset}: {place}{split}"


def _num_images(data: "ShapesData") -> str:
    return f"{data.num_train} training and {data.num_val} validation images"


def _teacher(plan: "StudyPlan") -> str:
    teacher = plan.teacher.student if plan.teacher is not None else plan.base.teacher
    assert teacher is not None
    state = {True: ", trained already", False: ", trained first", None: ""}[plan.teacher_known]
    layout = f", weights of {teacher.weights_layout}" if teacher.weights_layout else ""
    return f"{teacher.detector} {teacher.backbone}{layout}{state}"


def _search_facts(study: "Study", log: "Log | None") -> dict[str, object]:
    search = study.search
    if search is None:
        return {}
    kind = next(
        name for name in ("tpe", "random", "grid") if getattr(search.sampler, name) is not None
    )
    stop = next(
        (name for name in ("asha", "median") if getattr(search.stop_early, name) is not None),
        "none",
    )
    facts: dict[str, object] = {"searches": f"{search.metric} with {kind}", "early stopping": stop}
    if search.hours is not None:
        facts["hours"] = search.hours
    if search.gpu_hours is not None:
        from kdr.results.usage import gpu_hours_used

        used = gpu_hours_used(log, study.study) if log is not None else 0.0
        facts["GPU-hours"] = f"{search.gpu_hours:g}, {used:.1f} of them used"
    return facts


def _ablation_facts(plan: "StudyPlan") -> dict[str, object]:
    ablation = plan.study.ablation
    if ablation is None:
        return {}
    facts: dict[str, object] = {
        "compares": (
            f"{ablation.metric} of {len(plan.arms)} arms ({ablation.design}) with "
            f"'{plan.arms[0].name}'"
        ),
        "seeds": f"{len(ablation.all_seeds)}: {', '.join(map(str, ablation.all_seeds))}",
    }
    if plan.left_out:
        facts["left out"] = "; ".join(plan.left_out)
    return facts


def _logged_cost(plan: "StudyPlan", log: "Log | None") -> str:
    if not plan.missing:
        return "nothing: all trials are known"
    cost = None
    if log is not None:
        from kdr.report.cost import logged_cost
        from kdr.report.formatting import duration

        cost = logged_cost(log, plan.missing, workers=plan.study.resources.workers)
    if cost is None:
        return (
            "unknown: the log has no completed trial of this shape. --probe estimates it from a "
            "few steps"
        )
    gpus = f", {cost.gpu_hours:.1f} GPU-hours" if cost.gpu_hours else ""
    return (
        f"{duration(cost.seconds)} for {cost.num_trials} trials one after the other{gpus}: the "
        f"mean of {cost.num_logged} logged {'trial' if cost.num_logged == 1 else 'trials'} of "
        f"this shape on {cost.device or 'an unknown device'}"
    )


def _decides(plan: "StudyPlan", log: "Log | None") -> str:
    """Returns the smallest effect that the seeds can decide: in the metric if the log knows the
    spread of differences, else in units of that spread.
    """
    from kdr.report.power import POWER, smallest_effect

    ablation = plan.study.ablation
    assert ablation is not None
    num_seeds = len(ablation.all_seeds)
    compared = [
        arm.name for arm in plan.arms if not arm.is_reference and arm.same_as != plan.arms[0].name
    ]
    # Holm's correction is for the arms without the contrast
    adjusted = max(1, len([name for name in compared if name != ablation.contrast]))
    effect = smallest_effect(num_seeds, adjusted)
    if effect is None:
        return "nothing: one seed has no spread"
    of = (
        f"{POWER:.0%} power, {num_seeds} seeds, {adjusted} "
        f"{'comparison' if adjusted == 1 else 'comparisons'}"
    )
    spread = _spread(plan, log) if log is not None else None
    if spread:
        return (
            f"a difference of {effect * spread:.2g} {ablation.metric} ({of}, sd of differences "
            f"{spread:.2g} so far)"
        )
    return (
        f"a difference of {effect:.2g} sd of the paired differences ({of}): {effect * 0.005:.2g} "
        f"{ablation.metric} if sd is 0.005"
    )


def _spread(plan: "StudyPlan", log: "Log") -> float | None:
    from kdr.report.power import spread_of_differences

    values: dict[str, dict[int, float]] = {}
    states = log.states()
    # completed trials only: a stopped trial has no value for the last epoch
    for row in log.ablation_arms_of(plan.study.study):
        state = states.get(row["key"])
        value = (
            state.metrics[plan.study.metric]
            if state is not None and state.state == "completed"
            else None
        )
        if value is not None:
            values.setdefault(row["arm"], {})[row["seed"]] = value
    reference = values.pop(plan.arms[0].name, {})
    return spread_of_differences(list(values.values()), reference)
