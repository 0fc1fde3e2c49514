import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models import get_weight, mobilenet_v3_small, resnet18

from kdr.config.detector import DetectorConfig
from kdr.detectors.build import build_detector, torchvision_model
from kdr.detectors.checkpoint_files import save_student
from kdr.detectors.detector import Detector
from kdr.detectors.state_file import read_state
from kdr.detectors.weights import (
    inherit,
    load_backbone_weights,
    load_configured_weights,
    load_weights,
)
from kdr.errors import WeightsError
from kdr.storage.local_path import LocalPath

State = dict[str, Tensor]
CATEGORIES = ("circle", "square", "star")
RETINANET = DetectorConfig(backbone="mobilenet_v3_small", fpn_channels=32)
FASTER_RCNN = RETINANET.with_changes(detector="faster_rcnn")
# scores and boxes are both per class; the first stage's `rpn.head.cls_logits` is not
FASTER_RCNN_CLASS_LAYER = tuple(
    f"roi_heads.box_predictor.{layer}.{part}"
    for layer in ("cls_score", "bbox_pred")
    for part in ("weight", "bias")
)


def built(
    config: DetectorConfig = RETINANET, categories: tuple[str, ...] = CATEGORIES, seed: int = 0
) -> Detector:
    return build_detector(config, categories, seed=seed)


def saved(path: Path, state: object) -> str:
    torch.save(state, path)
    return str(path)


def equal_keys(detector: Detector, state: Mapping[str, Tensor]) -> set[str]:
    return {
        key
        for key, value in detector.model.state_dict().items()
        if key in state and torch.equal(value, state[key])
    }


@pytest.mark.parametrize(
    "wrap",
    [
        pytest.param(lambda state: state, id="plain"),
        pytest.param(lambda state: {"model": state, "epoch": 3}, id="under model"),
        pytest.param(lambda state: {"state_dict": state}, id="under state_dict"),
        pytest.param(
            lambda state: {"model": {f"module.{key}": value for key, value in state.items()}},
            id="wrapped by DDP",
        ),
    ],
)
def test_a_whole_state_dict_is_loaded_from_any_wrapper(
    tmp_path: Path, wrap: Callable[[State], object]
) -> None:
    other = built(seed=1).model.state_dict()
    detector = built()
    report = load_weights(detector, saved(tmp_path / "w.pt", wrap(other)), min_share=1.0)
    assert equal_keys(detector, other) == set(other)
    assert (report.backbone, report.neck, report.head) == (1.0, 1.0, 1.0)
    assert (report.missing, report.unexpected, report.mismatched) == ((), (), ())
    line = f"{tmp_path / 'w.pt'}: loaded 100% of the backbone, 100% of the neck, 100% of the head"
    assert report.line() == line + ("; also in the file: epoch" if report.others else "")


def test_a_class_layer_of_other_classes_is_reported_and_keeps_its_initial_weights(
    tmp_path: Path,
) -> None:
    source = saved(tmp_path / "w.pt", built(categories=("a", "b"), seed=1).model.state_dict())
    detector, initial = built(), built().model.state_dict()
    report = load_weights(detector, source, min_share=1.0)
    names = tuple(f"head.classification_head.cls_logits.{part}" for part in ("weight", "bias"))
    assert report.mismatched == names
    assert report.head == 1 - 2 / sum(key.startswith("head") for key in initial)
    assert all(torch.equal(detector.model.state_dict()[name], initial[name]) for name in names)
    assert (
        "; 2 with different shape or classes: head.classification_head.cls_logits.weight, "
        in report.line()
    )


@pytest.mark.parametrize(
    "others",
    [
        pytest.param(("a", "b"), id="fewer"),
        pytest.param(("star", "circle", "square"), id="as many"),
    ],
)
def test_with_other_classes_only_the_last_layer_of_faster_rcnns_second_stage_is_not_loaded(
    tmp_path: Path, others: tuple[str, ...]
) -> None:
    path = tmp_path / "student.pt"
    save_student(LocalPath(path), built(FASTER_RCNN, others, seed=1), extra={})
    detector, initial = built(FASTER_RCNN), built(FASTER_RCNN).model.state_dict()
    report = load_weights(detector, str(path), min_share=1.0)
    assert report.mismatched == FASTER_RCNN_CLASS_LAYER
    source = read_state(str(path))
    for key, value in detector.model.state_dict().items():
        assert torch.equal(
            value, initial[key] if key in FASTER_RCNN_CLASS_LAYER else source[key]
        ), key


def test_faster_rcnns_own_classes_are_loaded_in_full(tmp_path: Path) -> None:
    path = tmp_path / "student.pt"
    save_student(LocalPath(path), built(FASTER_RCNN, seed=1), extra={})
    report = load_weights(built(FASTER_RCNN), str(path), min_share=1.0)
    assert (report.backbone, report.neck, report.head, report.mismatched) == (1.0, 1.0, 1.0, ())


def test_frozen_statistics_fill_batch_norm_except_its_step_counter(tmp_path: Path) -> None:
    frozen = torchvision_model(RETINANET.with_changes(norm="frozen"), 3).state_dict()
    report = load_weights(built(), saved(tmp_path / "w.pt", frozen), min_share=1.0)
    assert (report.backbone, report.missing) == (1.0, ())


def test_keys_of_torchvisions_early_files_are_renamed_as_torchvision_does(
    tmp_path: Path,
) -> None:
    state = built(seed=1).model.state_dict()
    early: State = {}
    for key, value in state.items():
        key = re.sub(r"(fpn\.\w+_blocks\.\d)\.0\.", r"\1.", key)
        early[re.sub(r"(_head\.conv)\.(\d)\.0\.", lambda m: f"{m[1]}.{2 * int(m[2])}.", key)] = (
            value
        )
    assert set(early) != set(state)
    # the oracle: torchvision reads these keys too
    torchvision_model(RETINANET, 3).load_state_dict(dict(early), strict=True)
    detector = built()
    report = load_weights(detector, saved(tmp_path / "w.pt", early), min_share=1.0)
    assert (report.head, report.unexpected) == (1.0, ())
    assert equal_keys(detector, state) == set(state)


def test_a_share_below_the_minimum_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    other = built(DetectorConfig(backbone="resnet18", fpn_channels=32), seed=1).model.state_dict()
    detector = built()
    before = {key: value.clone() for key, value in detector.model.state_dict().items()}
    source = saved(tmp_path / "w.pt", other)
    with pytest.raises(
        WeightsError,
        match=(
            r"w\.pt: must fill at least 90% of the backbone's keys, got 0%\. Check"
            r" detector.*missing"
        ),
    ):
        load_weights(detector, source, min_share=0.9)
    assert equal_keys(detector, before) == set(before)
    assert load_weights(detector, source, min_share=0.0).backbone == 0.0


def test_a_neck_of_another_width_is_refused(tmp_path: Path) -> None:
    source = saved(
        tmp_path / "w.pt", built(RETINANET.with_changes(fpn_channels=64)).model.state_dict()
    )
    with pytest.raises(
        WeightsError,
        match=r"must fill at least 90% of the neck's keys, got 0%\. Check .*fpn_channels",
    ):
        load_weights(built(), source, min_share=0.9)


def test_a_class_layer_of_equally_many_but_other_classes_is_not_loaded(tmp_path: Path) -> None:
    save_student(
        LocalPath(tmp_path / "student.pt"),
        built(categories=("star", "circle", "square"), seed=1),
        extra={},
    )
    detector, initial = built(), built().model.state_dict()
    report = load_weights(detector, str(tmp_path / "student.pt"), min_share=1.0)
    names = tuple(f"head.classification_head.cls_logits.{part}" for part in ("weight", "bias"))
    assert report.mismatched == names
    assert set(names) <= equal_keys(detector, initial)


def test_equal_class_names_with_another_head_are_refused(tmp_path: Path) -> None:
    config = RETINANET.with_changes(fpn_channels=64)
    save_student(LocalPath(tmp_path / "student.pt"), built(config), extra={})
    with pytest.raises(
        WeightsError, match=r"must fill at least 100% of the head's keys, got .*head_norm"
    ):
        load_weights(
            built(config.with_changes(head_norm="group")),
            str(tmp_path / "student.pt"),
            min_share=0.9,
        )


@pytest.mark.parametrize(
    ("backbone", "classifier"),
    [("resnet18", resnet18), ("mobilenet_v3_small", mobilenet_v3_small)],
)
def test_a_classifiers_body_is_loaded_without_its_last_layers(
    tmp_path: Path, backbone: str, classifier: Callable[..., Any]
) -> None:
    torch.manual_seed(3)
    model = classifier(weights=None).eval()
    detector = built(DetectorConfig(backbone=backbone, fpn_channels=32)).eval()
    report = load_backbone_weights(
        detector, saved(tmp_path / "c.pt", model.state_dict()), min_share=1.0
    )
    assert (report.backbone, report.neck, report.head) == (1.0, 0.0, 0.0)
    assert (report.missing, report.unexpected, report.mismatched) == ((), (), ())
    image = torch.randn(1, 3, 64, 64)
    layers = (
        model.features
        if backbone.startswith("mobilenet")
        else torch.nn.Sequential(*list(model.children())[:-2])
    )
    assert torch.equal(detector.model.get_submodule("backbone.body")(image)["2"], layers(image))


def test_another_backbones_weights_are_refused(tmp_path: Path) -> None:
    source = saved(tmp_path / "c.pt", resnet18(weights=None).state_dict())
    with pytest.raises(
        WeightsError, match=r"of the backbone's keys, got 0%\. Check the setting backbone"
    ):
        load_backbone_weights(built(), source, min_share=0.9)


def test_settings_load_the_backbone_first_and_then_the_whole(tmp_path: Path) -> None:
    other = built(seed=1).model.state_dict()
    source = saved(tmp_path / "w.pt", other)
    body = saved(tmp_path / "c.pt", mobilenet_v3_small(weights=None).state_dict())
    detector = built(RETINANET.with_changes(weights=source, backbone_weights=body))
    assert [report.source for report in load_configured_weights(detector)] == [body, source]
    assert equal_keys(detector, other) == set(other)
    assert load_configured_weights(built()) == ()


def test_an_enum_is_read_from_torchs_cache_without_a_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "RetinaNet_ResNet50_FPN_Weights.COCO_V1"
    state = torchvision_model(RETINANET, 91).state_dict()
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    torch.save(state, cache / Path(get_weight(name).url).name)
    detector = build_detector(RETINANET.with_changes(weights=name), ("circle",), seed=0)
    (report,) = load_configured_weights(detector)
    assert (report.backbone, report.neck, report.head) == (1.0, 1.0, 1.0)
    assert equal_keys(detector, state) == set(state)


def test_a_failed_download_is_a_weights_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(
        WeightsError,
        match=(
            r"^ResNet18_Weights\.IMAGENET1K_V1: not in torch's cache, and the download failed \("
        ),
    ):
        read_state("ResNet18_Weights.IMAGENET1K_V1")


class Unsafe:
    pass


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(b"", "Save it with torch.save", id="empty"),
        pytest.param(b"not a checkpoint at all", "Save it with torch.save", id="text"),
        pytest.param([1, 2], "must contain a state_dict .* got list", id="no mapping"),
        pytest.param({"epoch": 3}, "must contain a state_dict .* got dict", id="no tensors"),
        pytest.param({}, "must contain a state_dict", id="empty dict"),
        pytest.param(
            {"model": Unsafe()}, "must contain a state_dict .* got dict", id="pickled objects"
        ),
    ],
)
def test_a_file_without_a_state_dict_is_refused(
    tmp_path: Path, content: object, reason: str
) -> None:
    path = tmp_path / "w.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(WeightsError, match=f"w.pt: .*{reason}"):
        read_state(str(path))


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = Path(saved(tmp_path / "w.pt", {"a": torch.zeros(1000)}))
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(WeightsError, match=r"w\.pt: torch\.load.* cannot read it"):
        read_state(str(path))


def test_inherit_copies_neck_and_head_but_not_the_backbone() -> None:
    student, teacher = built(), built(seed=1)
    initial, source = built().model.state_dict(), teacher.model.state_dict()
    report = inherit(student, teacher)
    assert (report.backbone, report.neck, report.head) == (0.0, 1.0, 1.0)
    assert report.missing == report.unexpected == report.mismatched == ()
    for key, value in student.model.state_dict().items():
        assert torch.equal(
            value, initial[key] if key.startswith("backbone.body.") else source[key]
        ), key


def test_inherit_reports_what_does_not_fit() -> None:
    student, teacher = built(), built(DetectorConfig(backbone="resnet18", fpn_channels=32), seed=1)
    report = inherit(student, teacher)
    assert report.mismatched == tuple(
        f"backbone.fpn.inner_blocks.{level}.0.weight" for level in range(3)
    )
    assert report.head == 1.0


def test_inherit_copies_no_class_layer_of_other_names() -> None:
    student, teacher = built(), built(categories=("star", "circle", "square"), seed=1)
    key = "head.classification_head.cls_logits.weight"
    before = student.model.get_parameter(key).clone()
    report = inherit(student, teacher)
    assert len(report.mismatched) == 2
    assert torch.equal(student.model.get_parameter(key), before)


def test_inherit_for_faster_rcnn_copies_the_first_stage_but_no_class_layer_of_other_names() -> None:
    student, teacher = built(FASTER_RCNN), built(FASTER_RCNN, ("star", "circle", "square"), seed=1)
    report = inherit(student, teacher)
    assert (report.neck, report.mismatched) == (1.0, FASTER_RCNN_CLASS_LAYER)
    assert torch.equal(
        student.model.get_parameter("rpn.head.cls_logits.weight"),
        teacher.model.get_parameter("rpn.head.cls_logits.weight"),
    )


@pytest.mark.parametrize(
    ("student", "teacher"),
    [(RETINANET, FASTER_RCNN), (FASTER_RCNN, RETINANET)],
    ids=["from", "to"],
)
def test_inherit_between_pyramids_with_other_levels_does_not_copy_the_neck(
    student: DetectorConfig, teacher: DetectorConfig
) -> None:
    model, before = built(student), built(student).model.state_dict()
    report = inherit(model, built(teacher, seed=1))
    assert (report.backbone, report.neck, report.head) == (0.0, 0.0, 0.0)
    assert equal_keys(model, before) == set(before)


def test_inherit_shares_no_memory_with_the_teacher() -> None:
    student, teacher = built(), built(seed=1)
    inherit(student, teacher)
    assert not {p.data_ptr() for p in student.parameters()} & {
        p.data_ptr() for p in teacher.parameters()
    }
