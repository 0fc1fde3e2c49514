from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models.detection import (
    FasterRCNN_ResNet50_FPN_Weights,
    fasterrcnn_resnet50_fpn,
    fcos_resnet50_fpn,
    retinanet_resnet50_fpn,
    retinanet_resnet50_fpn_v2,
)
from torchvision.ops import FrozenBatchNorm2d

from kdr.config.detector import DetectorConfig
from kdr.config.problems import validated
from kdr.config.trial import StudentConfig
from kdr.detectors.build import build_detector, torchvision_model
from kdr.errors import ConfigError
from kdr.randomness import address

SMALL: dict[str, Any] = {"backbone": "mobilenet_v3_small", "fpn_channels": 32}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "theirs"),
    [
        pytest.param({"detector": "retinanet"}, retinanet_resnet50_fpn, id="retinanet"),
        pytest.param({"detector": "fcos"}, fcos_resnet50_fpn, id="fcos"),
        pytest.param({"detector": "faster_rcnn"}, fasterrcnn_resnet50_fpn, id="faster_rcnn"),
        pytest.param(
            {"head_norm": "group", "weights": "RetinaNet_ResNet50_FPN_V2_Weights.COCO_V1"},
            retinanet_resnet50_fpn_v2,
            id="v2",
        ),
    ],
)
def test_initial_weights_are_those_of_torchvisions_builder_under_the_same_seed(
    settings: dict[str, Any], theirs: Callable[..., nn.Module]
) -> None:
    detector = build_detector(DetectorConfig(**settings), ("a", "b"), seed=11, new_classes=True)
    torch.manual_seed(address(11, "detector"))
    expected = theirs(
        weights=None,
        weights_backbone=None,
        num_classes=3 if "faster_rcnn" in settings.values() else 2,
    )  # with the background
    state = detector.model.state_dict()
    assert list(state) == list(expected.state_dict())
    assert all(torch.equal(state[name], value) for name, value in expected.state_dict().items())
    trained = {
        name for name, parameter in detector.model.named_parameters() if parameter.requires_grad
    }
    assert trained == {
        name for name, parameter in expected.named_parameters() if parameter.requires_grad
    }
    ours, its = (getattr(model, "head", None) for model in (detector.model, expected))
    assert [
        getattr(getattr(head, "regression_head", None), "_loss_type", None) for head in (ours, its)
    ].count("giou") in (0, 2)


def test_another_seed_gives_other_weights() -> None:
    first, second = (
        build_detector(DetectorConfig(**SMALL), ("a",), seed=seed).state_dict() for seed in (0, 1)
    )
    drawn = [name for name, value in first.items() if name.endswith("weight") and value.ndim == 4]
    assert not any(torch.equal(first[name], second[name]) for name in drawn)


def test_building_does_not_change_the_global_generator() -> None:
    torch.manual_seed(2)
    expected = torch.rand(4)
    torch.manual_seed(2)
    build_detector(DetectorConfig(**SMALL), ("a",), seed=0)
    assert torch.equal(torch.rand(4), expected)


def test_frozen_norm_without_weights_is_refused() -> None:
    with pytest.raises(
        ConfigError,
        match=(
            r"^norm: frozen .* got neither weights nor backbone_weights\. Set one .* norm: batch"
        ),
    ):
        validated(DetectorConfig, {**SMALL, "norm": "frozen"})


def test_frozen_norm_is_accepted_with_backbone_weights() -> None:
    config = DetectorConfig(
        **SMALL, norm="frozen", backbone_weights="MobileNet_V3_Small_Weights.IMAGENET1K_V1"
    )
    assert build_detector(config, ("a",), seed=0).categories == ("a",)


def test_class_names_come_from_torchvisions_coco_weights() -> None:
    config = DetectorConfig(**SMALL, weights="RetinaNet_ResNet50_FPN_Weights.COCO_V1")
    detector = build_detector(config, ("circle",), seed=0)
    assert len(detector.categories) == 91
    assert detector.categories[1] == "person"
    head: Any = detector.model.get_submodule("head.classification_head")
    assert head.num_classes == 91
    assert build_detector(config, ("circle",), seed=0, new_classes=True).categories == ("circle",)


def test_class_names_of_faster_rcnns_coco_weights_exclude_the_background() -> None:
    weights = FasterRCNN_ResNet50_FPN_Weights.COCO_V1
    config = DetectorConfig(**SMALL, detector="faster_rcnn", weights=str(weights))
    detector = build_detector(config, ("circle",), seed=0)
    assert ("__background__", *detector.categories) == tuple(weights.meta["categories"])
    scores: Any = detector.model.get_submodule("roi_heads.box_predictor.cls_score")
    assert scores.out_features == 91  # with the background


@pytest.mark.parametrize(
    ("weights", "eps"), [("FasterRCNN_ResNet50_FPN_Weights.COCO_V1", 0.0), ("student.pt", 1e-5)]
)
def test_frozen_norm_of_faster_rcnn_has_eps_0_only_with_its_coco_weights(
    weights: str, eps: float
) -> None:
    config = DetectorConfig(
        detector="faster_rcnn",
        backbone="resnet18",
        fpn_channels=32,
        norm="frozen",
        weights=weights,
    )
    model = torchvision_model(config, 2)
    assert {module.eps for module in model.modules() if isinstance(module, FrozenBatchNorm2d)} == {
        eps
    }


def test_a_students_settings_build_a_detector() -> None:
    assert build_detector(StudentConfig(**SMALL, inherit=True), ("a",), seed=0).categories == ("a",)


def test_options_reach_torchvisions_class() -> None:
    model: Any = torchvision_model(DetectorConfig(**SMALL), 2, min_size=320, detections_per_img=7)
    assert (model.transform.min_size, model.detections_per_img) == ((320,), 7)


def test_the_momentum_of_batch_norm_is_the_networks_own_unless_set() -> None:
    def momenta(**settings: float) -> set[float | None]:
        config = DetectorConfig(backbone="mobilenet_v3_small", fpn_channels=32, **settings)
        detector = build_detector(config, ["a", "b"], seed=0)
        return {
            module.momentum for module in detector.modules() if isinstance(module, nn.BatchNorm2d)
        }

    assert momenta() == {0.01}
    assert momenta(norm_momentum=0.25) == {0.25}
