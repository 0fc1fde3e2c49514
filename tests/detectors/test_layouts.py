"""Features of other libraries' files, compared with a float64 forward over the files' own keys."""

import pickle
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kdr.config.detector import DetectorConfig
from kdr.detectors.build import build_detector
from kdr.detectors.checkpoint_files import open_student, save_student
from kdr.detectors.detector import Detector
from kdr.detectors.layouts import with_torchvision_names
from kdr.detectors.state_file import StateFile
from kdr.detectors.weights import LoadReport, load_configured_weights
from kdr.errors import WeightsError
from kdr.storage.local_path import LocalPath
from tests.detectors.conftest import BatchBuilder, NetworkBuilder, RandomBatch

pytestmark = pytest.mark.slow  # each test is quick, all of them together are not

Pixels = tuple[tuple[float, ...], tuple[float, ...], str]
"""Mean, std and channel order of a network's pixels."""
CATEGORIES = ("circle", "square", "star")
CAFFE: dict[str, Any] = {
    "bottleneck_stride": "1x1",
    "channel_order": "BGR",
    "pixel_mean": (102.9801, 115.9465, 122.7717),
    "pixel_std": (1.0, 1.0, 1.0),
}
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def normalised(
    batch: RandomBatch, mean: tuple[float, ...], std: tuple[float, ...], order: str
) -> Tensor:
    """Returns pixels as those libraries use them: in their channel order, normalised, then padded
    with zeros."""
    images = batch.images.double().flip(1) if order == "BGR" else batch.images.double()
    pixels = (images - torch.tensor(mean, dtype=torch.float64)[:, None, None]) / torch.tensor(std)[
        :, None, None
    ]
    for index, (height, width) in enumerate(batch.image_sizes):
        pixels[index, :, height:] = 0
        pixels[index, :, :, width:] = 0
    return pixels


def loaded(
    path: Path,
    state: dict[str, Tensor],
    settings: dict[str, Any],
    categories: tuple[str, ...] = CATEGORIES,
    **others: object,
) -> tuple[Detector, LoadReport]:
    """Returns the teacher from a file, in float64 and evaluation mode, and the report of its
    loading."""
    torch.save({"model": state, **others} if others else state, path)
    config = DetectorConfig(
        **{"weights": str(path), "backbone": "resnet18", "fpn_channels": 32, **settings}
    )
    teacher = build_detector(config, categories, seed=0)
    (report,) = load_configured_weights(teacher)
    return teacher.eval().double(), report


def features_of(teacher: Detector, batch: RandomBatch) -> list[Tensor]:
    with torch.no_grad():
        return teacher.features(teacher.pixels(batch.images, batch.image_sizes).double())


@pytest.fixture
def batch(random_batch: BatchBuilder) -> RandomBatch:
    return random_batch([(64, 96), (50, 71)], num_boxes=[1, 1])


RETINANET = {"detector": "retinanet"}
CASES = [
    # layout, settings, changes of the network, mean, std and channel order of its pixels
    pytest.param(
        "mmdetection",
        RETINANET,
        {"p7_relu": False},
        (MEAN, STD, "RGB"),
        id="mmdetection RetinaNet",
    ),
    pytest.param(
        "mmdetection",
        {**RETINANET, "p6_from": "P5", "p7_relu": True, "norm": "frozen"},
        {"p6_from": "P5"},
        (MEAN, STD, "RGB"),
        id="mmdetection RetinaNet, P6 on output, ReLU",
        marks=pytest.mark.slow,
    ),
    pytest.param(
        "mmdetection",
        {"detector": "fcos"},
        {"p6_from": "P5"},
        (MEAN, STD, "RGB"),
        id="mmdetection FCOS",
        marks=pytest.mark.slow,
    ),
    pytest.param(
        "mmdetection",
        {"detector": "fcos", "backbone": "resnet50", **CAFFE},
        {"p6_from": "P5", "first_1x1_strides": True},
        (CAFFE["pixel_mean"], (1.0,) * 3, "BGR"),
        id="mmdetection FCOS, caffe resnet50",
        marks=pytest.mark.slow,
    ),
    pytest.param(
        "mmdetection",
        {"detector": "faster_rcnn"},
        {"finest": 2},
        (MEAN, STD, "RGB"),
        id="mmdetection Faster R-CNN",
        marks=pytest.mark.slow,
    ),
    pytest.param(
        "mmdetection",
        {**RETINANET, "backbone": "resnext50_32x4d"},
        {"p7_relu": False},
        (MEAN, STD, "RGB"),
        id="mmdetection RetinaNet, resnext50",
        marks=pytest.mark.slow,
    ),
    pytest.param(
        "detectron2", RETINANET, {}, (MEAN[::-1], (1.0,) * 3, "BGR"), id="detectron2 RetinaNet"
    ),
    pytest.param(
        "detectron2",
        {**RETINANET, "backbone": "resnet50", "norm": "frozen"},
        {"first_1x1_strides": True},
        (MEAN[::-1], (1.0,) * 3, "BGR"),
        id="detectron2 RetinaNet, resnet50",
        marks=pytest.mark.slow,
    ),
    pytest.param(
        "detectron2",
        {"detector": "fcos"},
        {"p6_from": "P5"},
        (MEAN[::-1], (1.0,) * 3, "BGR"),
        id="detectron2 FCOS",
        marks=pytest.mark.slow,
    ),
    pytest.param(
        "detectron2",
        {
            "detector": "faster_rcnn",
            "backbone": "resnet50",
            "bottleneck_stride": "3x3",
            "channel_order": "RGB",
        },
        {"finest": 2},
        (MEAN, STD, "RGB"),
        id="detectron2 Faster R-CNN, torchvision's resnet50",
        marks=pytest.mark.slow,
    ),
    pytest.param(
        "detectron2",
        {"detector": "faster_rcnn", "backbone": "resnext50_32x4d"},
        {"finest": 2},
        (MEAN[::-1], STD[::-1], "BGR"),
        id="detectron2 Faster R-CNN, resnext50",
        marks=pytest.mark.slow,
    ),
]


@pytest.mark.parametrize(("layout", "settings", "network", "pixels"), CASES)
def test_features_are_those_of_the_files_own_library(
    tmp_path: Path,
    batch: RandomBatch,
    foreign_network: NetworkBuilder,
    layout: str,
    settings: dict[str, Any],
    network: dict[str, Any],
    pixels: Pixels,
) -> None:
    settings = {"backbone": "resnet18", **settings, "weights_layout": layout}
    theirs = foreign_network(layout, settings["backbone"], **network)
    teacher, report = loaded(tmp_path / "teacher.pth", theirs.state, settings)
    assert (report.backbone, report.neck, report.unexpected) == (1.0, 1.0, ())
    expected = theirs.features(normalised(batch, *pixels))
    for level, other in zip(features_of(teacher, batch), expected, strict=True):
        # pixels are float32 on one side
        torch.testing.assert_close(level, other, rtol=0, atol=2e-5 * float(other.std()))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "levels"),
    [
        pytest.param({"p7_relu": False}, [4], id="without the ReLU before P7"),
        pytest.param({"bottleneck_stride": "3x3"}, range(5), id="with the stride in the 3x3"),
        pytest.param({"channel_order": "RGB"}, range(5), id="in RGB"),
        pytest.param(
            {"pixel_mean": (102.9801, 115.9465, 122.7717)}, range(5), id="with another mean"
        ),
        pytest.param({"pixel_std": (1.02, 1.0, 1.0)}, range(5), id="with another std"),
    ],
)
def test_every_setting_changes_the_features(
    tmp_path: Path,
    batch: RandomBatch,
    foreign_network: NetworkBuilder,
    change: dict[str, Any],
    levels: Iterable[int],
) -> None:
    network = foreign_network("detectron2", "resnet50", first_1x1_strides=True)
    settings = {"backbone": "resnet50", "weights_layout": "detectron2"}
    teacher, _ = loaded(tmp_path / "a.pth", network.state, settings)
    other, _ = loaded(tmp_path / "b.pth", network.state, settings | change)
    pairs = zip(features_of(teacher, batch), features_of(other, batch), strict=True)
    assert [
        level
        for level, (a, b) in enumerate(pairs)
        if not torch.allclose(a, b, rtol=1e-3, atol=1e-3)
    ] == list(levels)


@pytest.mark.slow
def test_p6_comes_from_c5_even_if_c5_has_as_many_channels_as_the_fpn(
    tmp_path: Path, batch: RandomBatch, foreign_network: NetworkBuilder
) -> None:
    theirs = foreign_network("detectron2", fpn_channels=512)
    teacher, _ = loaded(
        tmp_path / "teacher.pth",
        theirs.state,
        {"weights_layout": "detectron2", "fpn_channels": 512},
    )
    expected = theirs.features(normalised(batch, MEAN[::-1], (1.0,) * 3, "BGR"))[3]
    torch.testing.assert_close(
        features_of(teacher, batch)[3], expected, rtol=0, atol=2e-5 * float(expected.std())
    )


def test_the_report_lists_unused_keys(tmp_path: Path, foreign_network: NetworkBuilder) -> None:
    network = foreign_network("detectron2", finest=2)
    for name in (
        "roi_heads.mask_head.deconv.weight",
        "roi_heads.box_head.fc1.weight",
        "proposal_generator.rpn_head.conv.weight",
    ):
        network.state[name] = torch.ones(1)
    settings = {"detector": "faster_rcnn", "weights_layout": "detectron2"}
    _, report = loaded(
        tmp_path / "model.pth", network.state, settings, optimizer={}, iteration=90000
    )
    assert (report.backbone, report.neck, report.head) == (1.0, 1.0, 0.0)
    assert report.others == ("optimizer", "iteration")
    assert report.line().endswith(
        "; 3 not used: roi_heads.mask_head.deconv.weight and 1 more of roi_heads, "
        "proposal_generator.rpn_head.conv.weight; also in the file: optimizer, iteration"
    )


def test_averaged_weights_in_the_same_file_are_counted_and_not_used(
    tmp_path: Path, foreign_network: NetworkBuilder
) -> None:
    network = foreign_network("mmdetection")
    averaged = {f"ema_{key.replace('.', '_')}": value + 1 for key, value in network.state.items()}
    teacher, report = loaded(
        tmp_path / "a.pth", network.state | averaged, {"weights_layout": "mmdetection"}
    )
    assert set(report.unexpected) == set(averaged)
    assert f"ema_backbone_conv1_weight and {len(averaged) - 1} more of ema" in report.line()
    assert torch.equal(
        teacher.model.state_dict()["backbone.body.conv1.weight"],
        network.state["backbone.conv1.weight"].double(),
    )


A_KEY = {
    "mmdetection": "neck.fpn_convs.0.conv.weight",
    "detectron2": "backbone.fpn_lateral3.weight",
    "torchvision": "backbone.body.conv1.weight",
}


def named(
    settings: dict[str, Any], layout: str, *, meta: dict[str, str] | None = None, **tensors: Tensor
) -> dict[str, Tensor]:
    """Returns the renamed state_dict of a file with one key and these tensors."""
    file = StateFile({A_KEY[layout]: torch.zeros(1), **tensors}, meta or {})
    return with_torchvision_names(file, "w.pth", DetectorConfig(weights="w.pth", **settings), {})


@pytest.mark.parametrize(
    ("layout", "settings", "error"),
    [
        (
            "mmdetection",
            {},
            (
                "its layers have mmdetection's names, not torchvision's. Set weights_layout: "
                "mmdetection"
            ),
        ),
        (
            "detectron2",
            {},
            (
                "its layers have detectron2's names, not torchvision's. Set weights_layout: "
                "detectron2"
            ),
        ),
        (
            "detectron2",
            {"weights_layout": "mmdetection"},
            (
                "its layers have detectron2's names, not mmdetection's. Set weights_layout: "
                "detectron2"
            ),
        ),
        (
            "torchvision",
            {"weights_layout": "mmdetection"},
            (
                "its layers, such as backbone.body.conv1.weight, do not have mmdetection's names. "
                "Remove weights_layout"
            ),
        ),
    ],
)
def test_a_layout_other_than_in_the_settings_is_refused(
    layout: str, settings: dict[str, Any], error: str
) -> None:
    with pytest.raises(WeightsError, match=f"^{re.escape(f'w.pth: {error}')}$"):
        named(settings, layout)
    assert list(named({}, "torchvision")) == ["backbone.body.conv1.weight"]


def deformable(state: dict[str, Tensor]) -> None:
    state["backbone.layer2.0.conv2.conv_offset.weight"] = torch.zeros(18, 128, 3, 3)


def norm_in_fpn(state: dict[str, Tensor]) -> None:
    state["neck.lateral_convs.0.bn.weight"] = torch.ones(32)


@pytest.mark.parametrize(
    ("network", "settings", "change", "error"),
    [
        pytest.param(
            {},
            {"p6_from": "P5"},
            None,
            r"1 keys .*: backbone\.fpn\.extra_blocks\.p6\.weight\. Check",
            id="P6 from C5",
        ),
        pytest.param(
            {},
            {},
            deformable,
            r"1 keys .*: backbone\.body\.layer2\.0\.conv2\.conv_offset\.weight",
            id="deformable",
        ),
        pytest.param(
            {},
            {},
            norm_in_fpn,
            r"1 keys .*: backbone\.fpn\.lateral_convs\.0\.bn\.weight",
            id="norm in the FPN",
        ),
        pytest.param(
            {"finest": 2},
            {},
            None,
            r"6 keys .*: backbone\.fpn\.inner_blocks\.0",
            id="levels of Faster R-CNN",
        ),
        pytest.param({}, {"fpn_channels": 64}, None, r"16 keys", id="another width"),
    ],
)
def test_keys_that_would_make_it_another_network_are_refused(
    tmp_path: Path,
    foreign_network: NetworkBuilder,
    network: dict[str, Any],
    settings: dict[str, Any],
    change: Callable[[dict[str, Tensor]], None] | None,
    error: str,
) -> None:
    state = foreign_network("mmdetection", **network).state
    if change is not None:
        change(state)
    with pytest.raises(
        WeightsError,
        match=rf"w\.pth: {error}",
    ):
        loaded(
            tmp_path / "w.pth",
            state,
            {"weights_layout": "mmdetection", "min_loaded_share": 0.0, **settings},
        )


def test_layers_missing_in_the_file_lower_the_loaded_share(
    tmp_path: Path, foreign_network: NetworkBuilder
) -> None:
    state = {
        key: value
        for key, value in foreign_network("mmdetection").state.items()
        if "backbone.layer4" not in key
    }
    with pytest.raises(
        WeightsError, match=r"must fill at least 90% of the backbone's keys, got 75%"
    ):
        loaded(tmp_path / "w.pth", state, {"weights_layout": "mmdetection"})


def recorded(style: str = "caffe", extra: str = "on_output", relu: bool = True) -> dict[str, str]:
    """Returns the metadata of a caffe model."""
    return {
        "cfg": (
            f"""model = dict(
            data_preprocessor=dict(mean=[102.9801, 115.9465, 122.7717], std=[1.0, 1.0, 1.0],
                                   bgr_to_rgb=False),
            backbone=dict(style='{style}'),
            neck=dict(add_extra_convs='{extra}', relu_before_extra_convs={relu}))"""
        )
    }


FCOS = {"detector": "fcos", "weights_layout": "mmdetection"}


@pytest.mark.parametrize(
    ("settings", "meta", "error"),
    [
        (
            {"weights_layout": "mmdetection"},
            recorded(),
            (
                "bottleneck_stride: 1x1 (got 3x3), p6_from: P5 (got C5), p7_relu: true (got "
                "false), channel_order: BGR (got RGB), pixel_mean: [102.98, 115.947, 122.772] "
                "(got [123.675, 116.28, 103.53]), pixel_std: [1, 1, 1] (got [58.395, 57.12, "
                "57.375])"
            ),
        ),
        (
            {**FCOS, **CAFFE, "bottleneck_stride": None},
            recorded(),
            "bottleneck_stride: 1x1 (got 3x3)",
        ),
        (
            {**FCOS, **CAFFE},
            recorded(style="pytorch"),
            "bottleneck_stride: 3x3 (got 1x1)",
        ),
        ({**FCOS, **CAFFE}, recorded(relu=False), "p7_relu: false (got true)"),
        (
            {**FCOS, **CAFFE},
            recorded(extra="on_lateral"),
            "p6_from: the last lateral convolution, which kdr cannot build (got P5)",
        ),
        (
            {**FCOS, **CAFFE, "pixel_mean": (103.53, 116.28, 123.675)},
            recorded(),
            "pixel_mean: [102.98, 115.947, 122.772] (got [103.53, 116.28, 123.675])",
        ),
    ],
)
def test_settings_that_contradict_the_files_record_are_refused(
    settings: dict[str, Any], meta: dict[str, str], error: str
) -> None:
    message = f"w.pth: was trained with different settings. Set {error}"
    with pytest.raises(WeightsError, match=f"^{re.escape(message)}$"):
        named(settings, "mmdetection", meta=meta)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({**FCOS, **CAFFE}, id="FCOS"),
        # settings without effect on this detector are not compared
        pytest.param(
            {**FCOS, **CAFFE, "backbone": "resnet18", "bottleneck_stride": None},
            id="a backbone without bottlenecks",
        ),
        pytest.param({**FCOS, **CAFFE, "detector": "faster_rcnn"}, id="Faster R-CNN"),
    ],
)
def test_settings_that_match_the_files_record_are_accepted(settings: dict[str, Any]) -> None:
    assert list(named(settings, "mmdetection", meta=recorded())) == [
        "backbone.fpn.layer_blocks.0.0.weight"
    ]


def test_pixel_statistics_in_an_old_detectron2_file_must_match_the_settings() -> None:
    pixels = {
        "pixel_mean": torch.tensor([103.53, 116.28, 123.675]).view(3, 1, 1),
        "pixel_std": torch.ones(3, 1, 1),
    }
    assert {"pixel_mean", "pixel_std"} < set(
        named({"weights_layout": "detectron2"}, "detectron2", meta=None, **pixels)
    )
    with pytest.raises(
        WeightsError,
        match=(
            r"Set pixel_mean: \[103\.53, 116\.28, 123\.675\] \(got .*, pixel_std: \[1, 1, 1\] \(got"
        ),
    ):
        named(
            {"weights_layout": "detectron2", "channel_order": "RGB"},
            "detectron2",
            meta=None,
            **pixels,
        )


@pytest.mark.slow
def test_a_student_initialised_from_such_a_file_survives_saving(
    tmp_path: Path, batch: RandomBatch, foreign_network: NetworkBuilder
) -> None:
    start, _ = loaded(
        tmp_path / "w.pth", foreign_network("detectron2").state, {"weights_layout": "detectron2"}
    )
    save_student(LocalPath(tmp_path / "student.pt"), start.float(), extra={})
    opened = open_student(tmp_path / "student.pt").eval().double()
    assert all(
        torch.equal(a, b)
        for a, b in zip(features_of(start.double(), batch), features_of(opened, batch), strict=True)
    )


@pytest.mark.slow
def test_a_pickle_gives_the_same_features_as_the_same_weights_in_torchs_format(
    tmp_path: Path, batch: RandomBatch, foreign_network: NetworkBuilder
) -> None:
    network = foreign_network("detectron2", finest=2)
    settings = {
        "detector": "faster_rcnn",
        "backbone": "resnet18",
        "fpn_channels": 32,
        "weights_layout": "detectron2",
    }
    path = tmp_path / "model_final.pkl"
    arrays = {key: value.numpy() for key, value in network.state.items()}
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "zoo"}))
    of_pickle = build_detector(DetectorConfig(weights=str(path), **settings), CATEGORIES, seed=0)
    load_configured_weights(of_pickle)
    of_file, _ = loaded(tmp_path / "model.pth", network.state, settings)
    pairs = zip(
        features_of(of_pickle.eval().double(), batch), features_of(of_file, batch), strict=True
    )
    assert all(torch.equal(a, b) for a, b in pairs)
