"""Reading an ablation: seeds, names, paths, and contradictions between settings."""

from pathlib import Path
from typing import Any

import pytest

from kdr.config.overrides import changed
from kdr.config.study import Study, study_from, study_yaml
from kdr.errors import ConfigError

CONTENT: dict[str, Any] = {
    "study": "parts",
    "trial": {
        "data": {"dataset": "shapes"},
        "teacher": {"backbone": "resnet18", "training": {"epochs": 2}},
        "distill": {"kdr": {}},
    },
    "ablation": {
        "factors": {
            "review": {"off": {"distill.kdr.review_links": []}},
            "weight": {"low": {"distill.kdr.weight": 1.0}, "high": {"distill.kdr.weight": 10.0}},
        },
        "leave_out": [{"review": "off", "weight": "low"}],
        "seeds": [10, 11, 12],
        "margin": 0.005,
    },
}


def study_with(changes: dict[str, Any], folder: Path = Path("/")) -> Study:
    return study_from(
        changed(CONTENT, {f"ablation.{path}": value for path, value in changes.items()}),
        folder=folder,
    )


def test_an_ablation_survives_writing_and_reading() -> None:
    study = study_with({})
    assert study.ablation is not None
    assert (study.ablation.design, study.metric, study.ablation.all_seeds) == (
        "leave_one_out",
        "AP",
        (10, 11, 12),
    )
    assert study_from(study_yaml(study), folder=Path("/")) == study


def test_seeds_can_be_a_count_from_a_first_seed() -> None:
    study = study_with({"seeds": {"count": 3, "first": 100}})
    assert study.ablation is not None
    assert study.ablation.all_seeds == (100, 101, 102)


def test_the_metric_of_a_study_is_that_of_its_ablation() -> None:
    assert study_with({"metric": "AP50"}).metric == "AP50"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"seeds": [1, 2, 1]}, "ablation.seeds: must not repeat a seed, got [1, 2, 1]"),
        ({"seeds": []}, "ablation.seeds: needs at least 1 value"),
        (
            {"stop_early": "asha"},
            "ablation.stop_early: no such setting. Settings: arms, baseline, contrast, ",
        ),
        ({"design": "leave-one-out"}, "ablation.design: must be 'leave_one_out', 'add_one_in', "),
        (
            {"factors": {}, "leave_out": []},
            "ablation.factors: must not be empty for the design leave_one_out, got none",
        ),
        ({"factors.review": {}}, "ablation.factors.review: needs at least 1 value, got {}"),
        (
            {"factors.review.off": {}},
            "ablation.factors.review.off: needs at least 1 value, got {}",
        ),
        (
            {"factors.re view": {"off": {"seed": 1}}},
            "ablation.factors.re view: must start with a letter or digit, followed by",
        ),
        (
            {"factors.review.baseline": {"training.lr": 1}},
            "ablation.factors.review.baseline: must not be called baseline, the name of",
        ),
        (
            {"factors.review.off": {"seed": 3}},
            "ablation.factors.review.off.seed: must be left to ablation.seeds, got 3. Remove it",
        ),
        (
            {"baseline": {"seed": 3}},
            "ablation.baseline.seed: must be left to ablation.seeds, got 3. Remove it",
        ),
        (
            {"arms": {"off": {"distill": {}}}},
            "ablation.arms: must be empty for the design leave_one_out, got off. Remove them",
        ),
        (
            {"design": "arms", "factors": {}, "leave_out": []},
            "ablation.arms: must not be empty for the design arms, got none",
        ),
        (
            {"design": "add_one_in"},
            "ablation.factors.weight: must have one level for add_one_in, got low, high. Keep one",
        ),
        (
            {"leave_out": [{}, {"reveiw": "off"}]},
            "ablation.leave_out.0: needs at least 1 value, got {}",
        ),
        (
            {"leave_out": [{"reveiw": "off"}]},
            (
                "ablation.leave_out.0.reveiw: no such factor. Did you mean 'review'? Factors: "
                "review, weight"
            ),
        ),
        (
            {"leave_out": [{"weight": "hihg"}]},
            (
                "ablation.leave_out.0.weight: must be a level of this factor, got 'hihg'. Did you "
                "mean 'high'? Levels: baseline, low, high"
            ),
        ),
        ({"margin": 0}, "ablation.margin: must be greater than 0, got 0"),
    ],
    ids=lambda value: value.split(":")[0] if isinstance(value, str) else "",
)
def test_a_mistake_is_reported_once_with_path_rule_and_value(
    changes: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        study_with(changes)
    [found] = caught.value.problems
    assert found.startswith(problem)


def test_a_study_asks_one_question() -> None:
    search = {"trials": 3, "parameters": {"distill.kdr.weight": {"float": [1, 2]}}}
    with pytest.raises(
        ConfigError,
        match=r"^ablation: must not be set together with search, got both\. Make two studies$",
    ):
        study_from({**CONTENT, "search": search}, folder=Path("/"))


def test_problems_of_the_trial_and_of_the_ablation_are_reported_together() -> None:
    with pytest.raises(ConfigError) as caught:
        study_from(
            changed(
                CONTENT, {"trial.seed": "x", "ablation.leave_out": [{"a": "b"}, {"weight": "c"}]}
            ),
            folder=Path("/"),
        )
    assert sorted(problem.split(": ")[0] for problem in caught.value.problems) == [
        "ablation.leave_out.0.a",
        "ablation.leave_out.1.weight",
        "trial.seed",
    ]


def test_file_paths_in_arms_are_relative_to_the_study_file(tmp_path: Path) -> None:
    changes = {
        "baseline": {"student.backbone_weights": "small.pt"},
        "factors.teacher": {
            "big": {"teacher.weights": "big.pt", "teacher.training": None},
            "zoo": {"teacher": {"weights": "RetinaNet_ResNet50_FPN_Weights.COCO_V1"}},
            "own": {"teacher": {"weights": "own.pt"}},
        },
    }
    ablation = study_with(changes, tmp_path).ablation
    assert ablation is not None
    teacher = ablation.factors["teacher"]
    assert ablation.baseline == {"student.backbone_weights": str(tmp_path / "small.pt")}
    assert teacher["big"]["teacher.weights"] == str(tmp_path / "big.pt")
    assert teacher["zoo"] == {"teacher": {"weights": "RetinaNet_ResNet50_FPN_Weights.COCO_V1"}}
    assert teacher["own"] == {"teacher": {"weights": str(tmp_path / "own.pt")}}
