"""Reading a study: defaults, paths, overrides, and all problems at once."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from kdr.config.detector import is_weights_enum
from kdr.config.distill import DistillConfig
from kdr.config.overrides import changed
from kdr.config.study import read_study, study_from, study_yaml
from kdr.errors import ConfigError

DESIGN = """
study: quickstart
trial:
  data: {dataset: shapes, image_size_px: 128, num_train: 512, num_val: 128}
  teacher: {detector: retinanet, backbone: resnet18, training: {epochs: 10}}
  student: {detector: retinanet, backbone: mobilenet_v3_small, fpn_channels: 64}
  distill: {kdr: {weight: 3.0}}
  training: {epochs: 6, batch_size: 16, optimizer: adamw, lr: 2.0e-3}
  seed: 0
search:
  metric: AP
  trials: 8
  sampler: {tpe: {seed: 0}}
  stop_early: {asha: {grace_epochs: 2, reduction: 2}}
  parameters:
    distill.kdr.weight: {float: [0.1, 50], log: true}
    distill.kdr.pyramid_scales: {subset: [full, 4, 2, 1], at_least: 1}
    distill.kdr.review_links: {subset: [P4->P3, P5->P4, P6->P5, P7->P6]}
    distill.kdr.attention: {choice: [none, spatial, channel, both],
                             when: {distill.kdr.review_links: not empty}}
resources: {workers: 1, cpus_per_worker: 1}
"""
BASE: dict[str, Any] = {
    "study": "s",
    "trial": {
        "data": {"dataset": "shapes"},
        "teacher": {"training": {"epochs": 2}},
        "distill": {"kdr": {}},
    },
}
SEARCH: dict[str, Any] = {"trials": 3, "parameters": {"distill.kdr.weight": {"float": [1, 2]}}}
SETTINGS = "Settings: data, distill, seed, student, teacher, training"


def parameter(settings: Any) -> dict[str, Any]:
    return {"search": {"trials": 3, "parameters": {"distill.kdr.weight": settings}}}


def search(**settings: Any) -> dict[str, Any]:
    return {"search": {**SEARCH, **settings}}


def problems_of(changes: dict[str, Any]) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        study_from(changed(BASE, changes), folder=Path("/"))
    return caught.value.problems


def test_a_study_is_read(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(DESIGN)
    study = read_study(tmp_path / "study.yaml")
    assert study.study == "quickstart"
    assert study.base.training.lr == 2e-3
    assert study.base.student.fpn_channels == 64
    assert study.search is not None
    assert study.search.parameters["distill.kdr.weight"].kind == "float"
    assert study.search.parameters["distill.kdr.attention"].when == {
        "distill.kdr.review_links": "not empty"
    }
    assert study.resources.gpus_per_worker == "auto"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        # names
        (
            {"trial.distil": {}},
            f"trial.distil: no such setting. Did you mean 'distill'? {SETTINGS}",
        ),
        ({"trial.xyz": {}}, f"trial.xyz: no such setting. {SETTINGS}"),
        (
            {"trial.distill.kdr.wieght": 1},
            (
                "trial.distill.kdr.wieght: no such setting. Did you mean 'weight'? Settings: "
                "adapter_norm, "
            ),
        ),
        (
            {"trial.distill.yolo": {}},
            "trial.distill.yolo: no such setting. Settings: "
            + ", ".join(sorted(DistillConfig.model_fields)),
        ),
        (
            {"trial.data.num_trian": 3},
            (
                "trial.data.num_trian: no such setting. Did you mean 'num_train'? Settings: "
                "aspect_ratio_grouping, "
            ),
        ),
        (
            {"trial.data.train_images": "x"},
            "trial.data.train_images: no such setting. Settings: aspect_ratio_grouping, augment, ",
        ),
        (
            {"serach": {}},
            (
                "serach: no such setting. Did you mean 'search'? Settings: ablation, faults, "
                "keep_weights, loggers, resources, search, study, trial"
            ),
        ),
        (
            search(sampler="tep"),
            "search.sampler: no such setting. Did you mean 'tpe'? Settings: grid, random, tpe",
        ),
        (
            search(sampler={"tpe": {"sed": 1}}),
            "search.sampler.tpe.sed: no such setting. Did you mean 'seed'? Settings: seed",
        ),
        (
            search(sampler={"grid": {"seed": 1}}),
            "search.sampler.grid.seed: no such setting. This group has no settings",
        ),
        (
            search(stop_early={"asha": {"grace": 1}}),
            "search.stop_early.asha.grace: no such setting. Did you mean 'grace_epochs'?",
        ),
        (
            parameter({"floot": [1, 2]}),
            (
                "search.parameters.distill.kdr.weight.floot: no such setting. Did you mean "
                "'float'? Settings: at_least, choice, float, int, log, points, subset, when"
            ),
        ),
        # types
        ({"trial": 5}, "trial: must be a group of settings, got 5"),
        ({"trial.data": None}, "trial.data: must be a group of settings, got null"),
        ({"trial.distill.kdr": 5}, "trial.distill.kdr: must be a group of settings, got 5"),
        ({"trial.training.lr": "1e-3x"}, "trial.training.lr: must be a number, got '1e-3x'"),
        (
            {"trial.training.lr": float("nan")},
            "trial.training.lr: must be a finite number, got NaN",
        ),
        (
            {"trial.training.lr": float("inf")},
            "trial.training.lr: must be a finite number, got Infinity",
        ),
        ({"trial.training.epochs": 1.5}, "trial.training.epochs: must be a whole number, got 1.5"),
        (
            {"trial.training.epochs": True},
            "trial.training.epochs: must be a whole number, got true",
        ),
        ({"trial.training.epochs": "3"}, "trial.training.epochs: must be a whole number, got '3'"),
        (
            {"trial.student.inherit": "yes"},
            "trial.student.inherit: must be true or false, got 'yes'",
        ),
        ({"trial.student.inherit": 1}, "trial.student.inherit: must be true or false, got 1"),
        ({"trial.teacher.labels": {"disc": 1}}, "trial.teacher.labels.disc: must be text, got 1"),
        (
            {"trial.distill.kdr.pyramid_scales": "full"},
            "trial.distill.kdr.pyramid_scales: must be a list, got 'full'",
        ),
        (
            {"trial.distill.kdr.pyramid_scales": ["half"]},
            "trial.distill.kdr.pyramid_scales.0: must be 'full' or a whole number, got 'half'",
        ),
        (
            {"trial.distill.kdr.review_links": "none"},
            "trial.distill.kdr.review_links: must be 'all' or a list, got 'none'",
        ),
        (
            {"resources.gpus_per_worker": "some"},
            "resources.gpus_per_worker: must be 'auto' or a number, got 'some'",
        ),
        (
            {"keep_weights": 0},
            "keep_weights: must be 'all' or 'none' or greater than or equal to 1, got 0",
        ),
        (search(enqueue=[5]), "search.enqueue.0: must be a group of settings, got 5"),
        # words
        ({"trial.data": {}}, "trial.data.dataset: must be given"),
        (
            {"trial.data.dataset": "cocoo"},
            (
                "trial.data.dataset: must be one of 'shapes', 'coco', got 'cocoo'. Did you mean "
                "'coco'?"
            ),
        ),
        (
            {"trial.student.backbone": "resnet19"},
            "trial.student.backbone: must be 'resnet18', 'resnet34', ",
        ),
        (
            search(metric="map"),
            "search.metric: must be 'AP', 'AP50', 'AP75', 'APs', 'APm' or 'APl', got 'map'",
        ),
        (
            {"study": "a b"},
            (
                "study: must start with a letter or digit, followed by letters, digits, '.', '_' "
                "or '-', got 'a b'"
            ),
        ),
        ({"study": ""}, "study: must start with a letter or digit"),
        # ranges
        ({"resources.workers": 0}, "resources.workers: must be greater than or equal to 1, got 0"),
        (
            {"trial.teacher.training.lr": 0},
            "trial.teacher.training.lr: must be greater than 0, got 0",
        ),
        (
            {"trial.student.fpn_channels": 60},
            "trial.student.fpn_channels: must be a multiple of 8, got 60",
        ),
        (
            {"trial.distill.kdr.pyramid_scales": []},
            "trial.distill.kdr.pyramid_scales: needs at least 1 value, got []",
        ),
        (
            {"trial.training.warmup_steps": -3},
            "trial.training.warmup_steps: must be 0 or more, got -3",
        ),
        (
            {"trial.data.search_split": 512},
            "trial.data.search_split: must leave training images, got 512 of num_train=512",
        ),
        # contradictions
        (
            {"resources": {"workers": 3, "gpus_per_worker": 0.5}},
            (
                "resources.gpus_per_worker: must be a whole number if above 1 or with several "
                "workers, got 0.5 for each of 3. Use"
            ),
        ),
        (
            {"resources.gpus_per_worker": 1.5},
            "resources.gpus_per_worker: must be a whole number if above 1",
        ),
        (
            {"trial.teacher": None},
            (
                "trial.teacher: distill.kdr needs a teacher, got none. Add one, or switch off "
                "distill.kdr"
            ),
        ),
        (
            {"trial.teacher": None, "trial.distill": {}, "trial.student.inherit": True},
            (
                "trial.teacher: student.inherit needs a teacher, got none. Add one, or switch off "
                "student.inherit"
            ),
        ),
        (
            {"trial.teacher": {}},
            "trial.teacher: needs either weights or training, got neither. Set teacher.weights to",
        ),
        (
            {"trial.teacher.weights": "t.pt"},
            "trial.teacher: needs either weights or training, got both. ",
        ),
        (
            {"trial.distill.kdr.review_links": ["P9->P8"]},
            (
                "trial.distill.kdr.review_links: must be links of retinanet (P4->P3, P5->P4, "
                "P6->P5, P7->P6), got P9->P8"
            ),
        ),
        (
            {"trial.distill.kdr.review_links": ["P4->P3"] * 2},
            "trial.distill.kdr.review_links: must not repeat a link, got ['P4->P3', 'P4->P3']",
        ),
        (
            {"trial.distill.kdr.align": "identity", "trial.student.fpn_channels": 64},
            (
                "trial.distill.kdr.align: identity needs equal FPN channels of student and "
                "teacher, got 64 and 256. Use conv1x1"
            ),
        ),
        (
            {"trial.data.resize": {}},
            "trial.data.resize: needs exactly one of square_px and short_side_px, got neither",
        ),
        (
            {"trial.data.resize": {"short_side_px": []}},
            "trial.data.resize.short_side_px: needs at least 1 value, got []",
        ),
        (
            {"trial.training.step_epochs": [3, 2]},
            "trial.training.step_epochs: must increase, got [3, 2]",
        ),
        (
            {"trial.training.schedule": "cosine", "trial.training.step_epochs": [2]},
            "trial.training.step_epochs: must be used with schedule: step only, got cosine",
        ),
        (
            {"trial.student.detector": "fcos", "trial.student.head_norm": "none"},
            "trial.student.head_norm: torchvision's FCOS head always",
        ),
        (
            {"trial.student.detector": "faster_rcnn", "trial.student.head_norm": "group"},
            (
                "trial.student.head_norm: torchvision's Faster R-CNN has no group norm in its "
                "head, got group. Leave it out"
            ),
        ),
        (
            {"trial.student.detector": "fcos", "trial.student.anchor_scale": 4},
            "trial.student.anchor_scale: FCOS has no anchors",
        ),
        (
            {"trial.student.detector": "fcos", "trial.student.fpn_channels": 40},
            "trial.student.fpn_channels: must be a multiple of 32 for the head's group norm",
        ),
        # searches
        ({"search": {"trials": 3}}, "search.parameters: must be given"),
        ({"search": {"trials": 3, "parameters": {}}}, "search.parameters: "),
        (
            {"search": {"parameters": SEARCH["parameters"]}},
            "search: needs a budget in trials, hours or gpu_hours, got none. Add trials: 16",
        ),
        (
            search(sampler={"tpe": {}, "grid": {}}),
            "search.sampler: needs exactly one of tpe, random, grid, got tpe and grid",
        ),
        (
            search(stop_early={"asha": {}, "median": {}}),
            "search.stop_early: must be asha, median or none, got both",
        ),
        (
            parameter({}),
            (
                "search.parameters.distill.kdr.weight: needs exactly one of float, int, choice, "
                "subset, got none"
            ),
        ),
        (
            parameter({"float": [1, 2], "int": [1, 2]}),
            "search.parameters.distill.kdr.weight: needs exactly one of float, int, choice, ",
        ),
        (
            parameter({"float": [0, 10], "log": True}),
            (
                "search.parameters.distill.kdr.weight: needs 0 < low < high on a log scale, got "
                "low=0.0, high=10.0"
            ),
        ),
        (
            parameter({"float": [2, 1]}),
            "search.parameters.distill.kdr.weight: needs low < high, got low=2.0, high=1.0",
        ),
        (parameter({"float": [1]}), "search.parameters.distill.kdr.weight.float.1: must be given"),
        (
            parameter({"float": [1, 2, 3]}),
            "search.parameters.distill.kdr.weight.float: needs at most 2 values, got [1, 2, 3]",
        ),
        (
            parameter({"int": [1.5, 2]}),
            "search.parameters.distill.kdr.weight.int.0: must be a whole number, got 1.5",
        ),
        (
            parameter({"choice": []}),
            "search.parameters.distill.kdr.weight.choice: needs at least 1 value, got []",
        ),
        (
            parameter({"choice": [1, 1.0]}),
            "search.parameters.distill.kdr.weight.choice: must not repeat a value, got [1, 1.0]",
        ),
        (
            parameter({"subset": ["a"], "at_least": 2}),
            "search.parameters.distill.kdr.weight.at_least: must be at most 1, the members of",
        ),
        (
            parameter({"choice": ["a"], "at_least": 1}),
            (
                "search.parameters.distill.kdr.weight.at_least: must be used with subset only, got "
                "choice"
            ),
        ),
        (
            parameter({"choice": ["a"], "log": True}),
            (
                "search.parameters.distill.kdr.weight.log: must be used with float or int only, "
                "got choice"
            ),
        ),
        (
            parameter({"int": [1, 2], "points": 3}),
            "search.parameters.distill.kdr.weight.points: must be used with float only, got int",
        ),
    ],
    ids=lambda value: value.split(":")[0] if isinstance(value, str) else "",
)
def test_a_mistake_is_reported_once_with_path_rule_and_value(
    changes: dict[str, Any], problem: str
) -> None:
    [found] = problems_of(changes)
    assert found.startswith(problem)


def test_every_missing_path_of_a_data_set_is_named() -> None:
    names = ("train_images", "train_annotations", "val_images", "val_annotations")
    assert problems_of({"trial.data": {"dataset": "coco"}}) == tuple(
        f"trial.data.{name}: must be given" for name in names
    )


def test_all_problems_of_a_study_are_reported_at_once() -> None:
    found = problems_of(
        {"trial.seed": "x", "trial.student.depth": 3, "resources.workers": 0, **search(trials=0)}
    )
    assert sorted(problem.split(":")[0] for problem in found) == [
        "resources.workers",
        "search.trials",
        "trial.seed",
        "trial.student.depth",
    ]


def test_batches_that_workers_cannot_share_evenly_are_refused() -> None:
    assert problems_of(
        {
            "resources.workers": 3,
            "trial.training.batch_size": 16,
            "trial.teacher.training.batch_size": 8,
        }
    ) == (
        (
            "trial.training.batch_size: must be a multiple of resources.workers, 3, which share "
            "every batch, got 16. Change one of them"
        ),
        (
            "trial.teacher.training.batch_size: must be a multiple of resources.workers, 3, which "
            "share every batch, got 8. Change one of them"
        ),
    )


def test_one_and_true_are_two_choices() -> None:
    study = study_from(changed(BASE, parameter({"choice": [1, True]})), folder=Path("/"))
    assert study.search is not None
    assert study.search.parameters["distill.kdr.weight"].choice == (1, True)


@pytest.mark.parametrize("name", ["tpe", "random", "grid"])
def test_a_bare_name_gets_a_samplers_defaults(name: str) -> None:
    bare = study_from(changed(BASE, search(sampler=name)), folder=Path("/"))
    assert bare == study_from(changed(BASE, search(sampler={name: {}})), folder=Path("/"))


@pytest.mark.parametrize(
    ("name", "spelled_out"), [("asha", {"asha": {}}), ("median", {"median": {}}), ("none", {})]
)
def test_a_bare_name_gets_the_defaults_of_early_stopping(
    name: str, spelled_out: dict[str, Any]
) -> None:
    bare, full = (
        study_from(changed(BASE, search(stop_early=rule)), folder=Path("/"))
        for rule in (name, spelled_out)
    )
    assert bare.search is not None
    assert full.search is not None
    assert bare.search.stop_early == full.search.stop_early


def test_relative_paths_are_relative_to_the_study_file_and_enum_names_stay(tmp_path: Path) -> None:
    trial = {
        "data": {
            "dataset": "coco",
            "train_images": "t",
            "train_annotations": "/t.json",
            "val_images": "../v",
            "val_annotations": "v",
        },
        "teacher": {"weights": "teacher.pt", "backbone_weights": "~/b.pt"},
        "student": {"backbone_weights": "ResNet50_Weights.IMAGENET1K_V1"},
        "distill": {"kdr": {}},
    }
    (tmp_path / "study.yaml").write_text(json.dumps({"study": "s", "trial": trial}))
    base = read_study(tmp_path / "study.yaml").base
    assert base.data.dataset == "coco"
    assert base.data.train_images == str(tmp_path / "t")
    assert base.data.train_annotations == "/t.json"
    assert base.data.val_images == str(tmp_path / "../v")
    assert base.teacher is not None
    assert base.teacher.weights == str(tmp_path / "teacher.pt")
    assert base.teacher.backbone_weights == str(Path.home() / "b.pt")
    assert base.student.backbone_weights == "ResNet50_Weights.IMAGENET1K_V1"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ResNet50_Weights.IMAGENET1K_V1", True),
        ("runs/my_Weights.pt", False),
        ("teacher.pt", False),
        ("weights/a_Weights.b", False),
    ],
)
def test_names_of_weights_enums_are_distinguished_from_files(name: str, expected: bool) -> None:
    assert is_weights_enum(name) == expected


def test_overrides_replace_settings_of_the_trial_and_of_the_study(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(DESIGN)
    overrides = [
        "training.epochs=3",
        "search.trials=2",
        "keep_weights=all",
        "trial.seed=7",
        "search.parameters.distill.kdr.weight.float=[1, 2]",
    ]
    study = read_study(tmp_path / "study.yaml", overrides)
    assert (study.base.training.epochs, study.base.seed, study.keep_weights) == (3, 7, "all")
    assert study.search is not None
    assert study.search.trials == 2
    assert study.search.parameters["distill.kdr.weight"].float_ == (1, 2)


def test_a_wrong_override_is_reported_like_a_wrong_setting(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(DESIGN)
    with pytest.raises(
        ConfigError, match=r"^trial\.trainig: no such setting\. Did you mean 'training'\?"
    ):
        read_study(tmp_path / "study.yaml", ["trainig.epochs=3"])


@pytest.mark.parametrize("writer", [json.dumps, yaml.safe_dump])
@pytest.mark.parametrize(
    "overrides",
    [[], ["search.sampler=grid"], ["search.stop_early=none"], ["distill.kdr.preset=kdr-paper"]],
)
def test_a_study_survives_writing_and_reading(
    writer: Any, overrides: list[str], tmp_path: Path
) -> None:
    (tmp_path / "study.yaml").write_text(DESIGN)
    study = read_study(tmp_path / "study.yaml", overrides)
    (tmp_path / "again.yaml").write_text(writer(study_yaml(study)))
    again = read_study(tmp_path / "again.yaml")
    assert again == study
    assert again.base == study.base
    assert study_yaml(again) == study_yaml(study)


def test_defaults_are_not_written_out() -> None:
    assert study_yaml(study_from(BASE, folder=Path("/"))) == BASE


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "trial.training.lr": st.floats(1e-9, 1e9),
            "trial.training.clip_norm": st.none() | st.floats(1e-3, 1e3),
            "trial.seed": st.integers(-(2**60), 2**60),
            "trial.teacher.labels": st.dictionaries(st.text(min_size=1), st.text(), max_size=2),
            "trial.distill.kdr.pyramid_scales": st.lists(
                st.sampled_from(["full", 1, 2, 4]), min_size=1
            ),
            "keep_weights": st.sampled_from(["all", "none", 3]),
            "resources.cpus_per_worker": st.floats(0.01, 100),
        },
    )
)
def test_every_value_survives_writing_and_reading(changes: dict[str, Any]) -> None:
    study = study_from(changed(BASE, changes), folder=Path("/"))
    again = study_from(yaml.safe_load(yaml.safe_dump(study_yaml(study))), folder=Path("/elsewhere"))
    assert again == study
    assert again.base == study.base


def test_a_changed_trial_is_checked_like_the_base() -> None:
    study = study_from(BASE, folder=Path("/"))
    assert study.trial_with({"distill.kdr.weight": 7, "training.epochs": 2}).training.epochs == 2
    assert study.base.training.epochs == 12
    with pytest.raises(
        ConfigError,
        match=r"^trial\.distill\.kdr\.weight: must be greater than or equal to 0, got -1$",
    ):
        study.trial_with({"distill.kdr.weight": -1})


def test_searched_paths_are_relative_to_the_study_file(tmp_path: Path) -> None:
    content = {
        "study": "files",
        "trial": {"data": {"dataset": "shapes"}},
        "search": {
            "trials": 1,
            "parameters": {
                "student.weights": {
                    "choice": ["a.pt", None, "RetinaNet_ResNet50_FPN_Weights.COCO_V1", "/b.pt"]
                }
            },
        },
    }
    study = study_from(content, folder=tmp_path)
    assert study.search is not None
    expected = (str(tmp_path / "a.pt"), None, "RetinaNet_ResNet50_FPN_Weights.COCO_V1", "/b.pt")
    assert study.search.parameters["student.weights"].choice == expected


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"trial.training.micro_batch": 17},
            "trial.training.micro_batch: must be at most batch_size, 16, got 17. Lower it, or ",
        ),
        (
            {"trial.training.micro_batch": 9, "resources.workers": 2},
            (
                "trial.training.micro_batch: must be at most the batch of one worker, 8 of 16 "
                "images, got 9. Lower it, or remove"
            ),
        ),
        (
            {"trial.teacher.training.micro_batch": 9, "resources.workers": 2},
            (
                "trial.teacher.training.micro_batch: must be at most the batch of one worker, 8 of "
                "16 images, got 9. Lower it"
            ),
        ),
    ],
)
def test_passes_larger_than_a_workers_batch_are_refused(
    changes: dict[str, Any], problem: str
) -> None:
    [found] = problems_of(
        {"trial.training.batch_size": 16, "trial.teacher.training.batch_size": 16, **changes}
    )
    assert found.startswith(problem)


@pytest.mark.parametrize("value", [0, "half", 2.5, True])
def test_micro_batch_is_a_whole_number_or_auto(value: Any) -> None:
    problems = problems_of({"trial.training.micro_batch": value})
    assert all(problem.startswith("trial.training.micro_batch: ") for problem in problems)
    assert problems
