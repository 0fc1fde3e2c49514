"""The data sets and weights files that a study needs on every node."""

from pathlib import Path
from typing import Any

from kdr.config.overrides import changed
from kdr.config.study import Study, study_from
from kdr.plan.inputs import data_of, weights_files_of

STUDY: dict[str, Any] = {
    "study": "inputs",
    "trial": {
        "data": {"dataset": "shapes"},
        "teacher": {"backbone": "resnet18", "weights": "teacher.pt"},
        "student": {"backbone": "resnet18", "backbone_weights": "ResNet18_Weights.IMAGENET1K_V1"},
        "distill": {"kdr": {}},
    },
    "ablation": {
        "factors": {
            "images": {"few": {"data.num_train": 64}},
            "start": {"own": {"student.backbone_weights": "mine.pt"}},
        },
        "design": "leave_one_out",
        "seeds": [0, 1],
    },
}


def study_with(changes: dict[str, Any]) -> Study:
    return study_from(changed(STUDY, changes), folder=Path("/here"))


def test_every_data_set_of_the_arms_is_listed_once() -> None:
    shapes = [data for data in data_of(study_with({})) if data.dataset == "shapes"]
    assert [data.num_train for data in shapes] == [512, 64]
    assert len(data_of(study_with({"ablation": None}))) == 1


def test_weights_files_are_listed_and_torchvision_enums_are_not() -> None:
    assert weights_files_of(study_with({})) == ["/here/mine.pt", "/here/teacher.pt"]


def test_an_unused_teacher_needs_no_file() -> None:
    assert weights_files_of(study_with({"ablation": None, "trial.distill": {}})) == []
