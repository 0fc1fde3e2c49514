"""What a trial's key depends on, and what it does not."""

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdr.config.overrides import changed
from kdr.config.problems import validated
from kdr.config.training import TrainingConfig
from kdr.config.trial import TrialConfig
from kdr.config.versions import RESULTS_VERSION
from kdr.plan.keys import key_of, make_trial

TRIAL: dict[str, Any] = {
    "data": {"dataset": "shapes", "image_size_px": 128, "num_train": 512},
    "teacher": {"detector": "retinanet", "backbone": "resnet18", "training": {"epochs": 10}},
    "student": {"detector": "retinanet", "backbone": "mobilenet_v3_small", "fpn_channels": 64},
    "distill": {"kdr": {"weight": 3.0}},
    "training": {"epochs": 6, "lr": 0.002},
    "seed": 0,
}
WITH_WEIGHTS = changed(TRIAL, {"teacher": {"backbone": "resnet18", "weights": "teacher.pt"}})
CHANGES_THAT_MATTER: list[tuple[str, Any]] = [
    ("data.num_train", 500),
    ("data.search_split", 0.25),
    ("data.augment.flip", 0),
    ("data.resize", {"square_px": 96}),
    ("student.backbone", "resnet18"),
    ("student.detector", "fcos"),
    ("student.head_norm", "group"),
    ("student.trainable_stages", 3),
    ("student.inherit", True),
    ("student.weights", "student.pt"),
    ("student.backbone_weights", "ResNet18_Weights.IMAGENET1K_V1"),
    ("teacher.backbone", "resnet34"),
    ("teacher.seed", 1),
    ("teacher.training.epochs", 11),
    ("teacher.labels", {"disc": "circle"}),
    ("distill", {}),
    ("distill.kdr.weight", 3.5),
    ("distill.kdr.foreground_share", 0.5),
    ("distill.kdr.review_links", ["P4->P3"]),
    ("distill.kdr.attention", "none"),
    ("distill.kdr.pyramid_scales", ["full"]),
    ("distill.kdr.preset", "kdr-paper"),
    ("training.epochs", 7),
    ("training.batch_size", 8),
    ("training.precision", "bf16"),
    ("training.eval_every_epochs", 2),
    ("training.clip_norm", None),
    ("training.bias_lr_factor", 2.0),
    ("training.bias_weight_decay", 0.0),
    ("training.micro_batch", 4),
    ("training.micro_batch", "auto"),
    ("seed", 1),
]


def key(
    content: dict[str, Any],
    *,
    data_id: str = "data",
    workers: int = 1,
    weights_id: Any = "id of {}".format,
) -> str:
    config = validated(TrialConfig, content)
    return make_trial(config, data_id=data_id, weights_id=weights_id, workers=workers).key


def shuffled(value: Any, chance: random.Random) -> Any:
    """Returns the same settings in another order, with whole numbers as floats or the reverse."""
    if isinstance(value, dict):
        names = chance.sample(sorted(value), len(value))
        return {name: shuffled(value[name], chance) for name in names}
    return (
        int(value)
        if isinstance(value, float) and value.is_integer() and chance.random() < 0.5
        else value
    )


def test_a_key_is_20_hexadecimal_characters() -> None:
    assert len(key(TRIAL)) == 20
    assert int(key(TRIAL), 16) >= 0


def test_a_key_is_the_same_in_every_process_and_version() -> None:
    assert key_of({"b": [1.0, None], "a": "x"}) == "a77c9b95afa8a6dc83de"


@given(st.lists(st.sampled_from(CHANGES_THAT_MATTER), max_size=4), st.randoms())
def test_order_and_number_format_do_not_change_a_key(
    changes: list[tuple[str, Any]], chance: random.Random
) -> None:
    content = changed(TRIAL, dict(changes))
    assert key(shuffled(content, chance)) == key(content)


def test_equal_whole_and_real_numbers_have_the_same_key() -> None:
    assert key(changed(TRIAL, {"training.lr": 1})) == key(changed(TRIAL, {"training.lr": 1.0}))


@pytest.mark.parametrize(
    ("path", "value"), CHANGES_THAT_MATTER, ids=[path for path, _ in CHANGES_THAT_MATTER]
)
def test_every_setting_that_changes_numbers_changes_the_key(path: str, value: Any) -> None:
    assert key(changed(TRIAL, {path: value})) != key(TRIAL)


def test_all_these_changes_have_different_keys() -> None:
    keys = [key(changed(TRIAL, {path: value})) for path, value in CHANGES_THAT_MATTER]
    assert len(set(keys)) == len(keys)


def test_data_and_number_of_workers_are_in_the_key() -> None:
    assert len({key(TRIAL), key(TRIAL, data_id="other"), key(TRIAL, workers=2)}) == 3


def test_workers_train_the_teacher_too() -> None:
    config = validated(TrialConfig, TRIAL)
    one, two = (
        make_trial(config, data_id="data", weights_id=str, workers=workers) for workers in (1, 2)
    )
    assert one.teacher_id != two.teacher_id


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("student.min_loaded_share", 0.5),
        ("teacher.min_loaded_share", 0.5),
        ("teacher.stated_ap", 0.389),
        ("teacher.stated_ap_margin", 0.05),
        ("training.precision", "fp32"),
        ("student.head_norm", None),
        ("distill.kdr.preset", "kdr"),
        ("distill.kdr.review_links", ["P7->P6", "P4->P3", "P5->P4", "P6->P5"]),
        ("distill.kdr.pyramid_scales", [1, 4, "full", 2, 4]),
    ],
)
def test_settings_that_change_no_numbers_do_not_change_the_key(path: str, value: Any) -> None:
    assert key(changed(TRIAL, {path: value})) == key(TRIAL)


def test_later_settings_of_training_are_left_out_while_unset() -> None:
    assert {"bias_lr_factor", "bias_weight_decay", "micro_batch"}.isdisjoint(
        TrainingConfig().canonical()
    )
    assert TrainingConfig().canonical()["step_epochs"] is None


def test_written_out_defaults_do_not_change_the_key() -> None:
    spelled_out = validated(TrialConfig, TRIAL).model_dump(mode="json")
    assert spelled_out["distill"]["kdr"]["masks"] == "boxes"
    assert key(spelled_out) == key(TRIAL)


def test_a_trial_keeps_its_key_through_writing_and_reading() -> None:
    content = changed(TRIAL, {"distill.kdr": {"preset": "kdr-paper"}, "student.detector": "fcos"})
    assert key(json.loads(validated(TrialConfig, content).model_dump_json())) == key(content)


@pytest.mark.parametrize(
    ("off", "without_effect"),
    [
        ({"distill.kdr.review_links": []}, {"distill.kdr.attention": "none"}),
        ({"distill.kdr.review_links": []}, {"distill.kdr.fusion": "gated"}),
        ({"distill.kdr.masks": "none"}, {"distill.kdr.foreground_share": 0.1}),
        ({"distill.kdr.masks": "none"}, {"distill.kdr.mask_values": "binary"}),
    ],
)
def test_settings_without_effect_are_not_in_the_key(
    off: dict[str, Any], without_effect: dict[str, Any]
) -> None:
    assert key(changed(TRIAL, off | without_effect)) == key(changed(TRIAL, off))
    assert key(changed(TRIAL, without_effect)) != key(TRIAL)


@pytest.mark.parametrize(
    "teacher",
    [None, {"backbone": "resnet152", "weights": "w.pt"}, {"training": {"epochs": 1}, "seed": 5}],
)
def test_without_distillation_the_teacher_is_not_in_the_key(teacher: Any) -> None:
    trial = make_trial(
        validated(TrialConfig, changed(TRIAL, {"distill": {}, "teacher": teacher})),
        data_id="data",
        weights_id=str,
    )
    assert trial.key == key(changed(TRIAL, {"distill": {}}))
    assert trial.teacher_id is None


def test_a_trained_teacher_is_identified_by_the_key_of_its_trial() -> None:
    config = validated(TrialConfig, TRIAL)
    trained = config.teacher_trial()
    assert trained is not None
    teacher = make_trial(trained, data_id="data", weights_id=str)
    assert make_trial(config, data_id="data", weights_id=str).teacher_id == teacher.key


def test_students_of_every_kind_share_one_trained_teacher() -> None:
    changes: list[dict[str, Any]] = [
        {"seed": 3},
        {"student.backbone": "resnet18"},
        {"distill.kdr.weight": 9},
        {"training.epochs": 2},
    ]
    trials = [
        make_trial(validated(TrialConfig, changed(TRIAL, change)), data_id="d", weights_id=str)
        for change in changes
    ]
    assert len({trial.teacher_id for trial in trials}) == 1
    assert len({trial.key for trial in trials}) == 4


def test_weights_are_identified_by_content_and_not_by_path() -> None:
    elsewhere = changed(
        WITH_WEIGHTS, {"teacher.weights": "copy/of/teacher.pt", "student.weights": None}
    )
    same_content = lambda _: "hash"  # noqa: E731
    assert key(elsewhere, weights_id=same_content) == key(WITH_WEIGHTS, weights_id=same_content)
    assert key(WITH_WEIGHTS, weights_id=lambda _: "another") != key(
        WITH_WEIGHTS, weights_id=same_content
    )


def test_trainable_stages_of_a_frozen_teacher_are_not_in_the_key() -> None:
    assert key(changed(WITH_WEIGHTS, {"teacher.trainable_stages": 0})) == key(WITH_WEIGHTS)


def test_a_teacher_with_weights_is_the_same_for_all_data() -> None:
    config = validated(TrialConfig, WITH_WEIGHTS)
    one, other = (make_trial(config, data_id=data_id, weights_id=str) for data_id in ("a", "b"))
    assert one.teacher_id == other.teacher_id
    assert one.key != other.key


def test_the_stated_ap_of_a_teacher_is_not_in_the_key() -> None:
    assert key(changed(WITH_WEIGHTS, {"teacher.stated_ap": 0.389})) == key(WITH_WEIGHTS)


def test_paths_of_the_data_are_not_in_the_key() -> None:
    def coco(root: str) -> dict[str, Any]:
        names = ("train_images", "train_annotations", "val_images", "val_annotations")
        return changed(
            TRIAL, {"data": {"dataset": "coco", **{name: f"{root}/{name}" for name in names}}}
        )

    assert key(coco("/here")) == key(coco("/there"))


@pytest.mark.parametrize(
    ("part", "content", "changes"),
    [
        ("trainer", TRIAL, True),
        ("data", TRIAL, True),
        ("retinanet", TRIAL, True),
        ("kdr", TRIAL, True),
        ("fcos", TRIAL, False),
        ("kdr", changed(TRIAL, {"distill": {}}), False),
        ("fcos", changed(TRIAL, {"teacher.detector": "fcos"}), True),
        ("fcos", changed(WITH_WEIGHTS, {"teacher.detector": "fcos"}), True),
    ],
)
def test_a_results_version_changes_the_keys_of_trials_with_that_part(
    part: str, content: dict[str, Any], changes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = key(content)
    monkeypatch.setitem(RESULTS_VERSION, part, RESULTS_VERSION[part] + 1)
    assert (key(content) != before) == changes


def test_nan_has_no_key() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        key_of({"lr": float("nan")})
