"""Features of other libraries' files, beside a plain float64 forward over the files' own keys, as
those libraries compute it."""

import pickle
import re

import pytest
import torch
from torch import Tensor

from kdr.config.detector import DetectorConfig
from kdr.detectors.build import build_detector
from kdr.detectors.checkpoint_files import open_student, save_student
from kdr.detectors.layouts import in_torchvisions_names
from kdr.detectors.state_file import StateFile
from kdr.detectors.weights import load_configured_weights
from kdr.errors import WeightsError
from kdr.storage.local_path import LocalPath

pytestmark = pytest.mark.slow  # few of these tests are, all together are

CATEGORIES = ("circle", "square", "star")
CAFFE = {
    "bottleneck_stride": "1x1",
    "channel_order": "BGR",
    "pixel_mean": (102.9801, 115.9465, 122.7717),
    "pixel_std": (1.0, 1.0, 1.0),
}
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def normalised(batch, mean, std, order) -> Tensor:
    """Pixels as those libraries take them: channels in their order, less the mean, by the std,
    padded with zeros after that."""
    images = batch.images.double().flip(1) if order == "BGR" else batch.images.double()
    pixels = (images - torch.tensor(mean, dtype=torch.float64)[:, None, None]) / torch.tensor(std)[
        :, None, None
    ]
    for index, (height, width) in enumerate(batch.image_sizes):
        pixels[index, :, height:] = 0
        pixels[index, :, :, width:] = 0
    return pixels


def loaded(path, state, settings, categories=CATEGORIES, **beside):
    """The teacher that settings make of a file, in float64 and evaluation mode, and the report of
    its loading."""
    torch.save({"model": state, **beside} if beside else state, path)
    config = DetectorConfig(
        **{"weights": str(path), "backbone": "resnet18", "fpn_channels": 32, **settings}
    )
    teacher = build_detector(config, categories, seed=0)
    (report,) = load_configured_weights(teacher)
    return teacher.eval().double(), report


def features_of(teacher, batch) -> list[Tensor]:
    with torch.no_grad():
        return teacher.features(teacher.pixels(batch.images, batch.image_sizes).double())


@pytest.fixture
def batch(random_batch):
    return random_batch([(64, 96), (50, 71)], num_boxes=[1, 1])


RETINANET = {"detector": "retinanet"}
CASES = [
    # settings, what differs in the network, the mean, std and order of its pixels
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
    tmp_path, batch, foreign_network, layout, settings, network, pixels
):
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
def test_every_setting_counts(tmp_path, batch, foreign_network, change, levels):
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
def test_p6_is_from_c5_where_it_has_as_many_channels_as_the_fpn(tmp_path, batch, foreign_network):
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


def test_the_report_names_what_was_not_used(tmp_path, foreign_network):
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
        "proposal_generator.rpn_head.conv.weight; beside them in the file: optimizer, iteration"
    )


def test_averaged_weights_beside_the_others_are_counted_and_left(tmp_path, foreign_network):
    network = foreign_network("mmdetection")
    averaged = {f"ema_{key.replace('.', '_')}": value + 1 for key, value in network.state.items()}
    teacher, report = loaded(
        tmp_path / "a.pth", network.state | averaged, {"weights_layout": "mmdetection"}
    )
    assert set(report.unexpected) == set(averaged)
    assert f"ema_backbone_conv1_weight and {len(averaged) - 1} more of ema" in report.line()
    assert torch.equal(
        teacher.model.backbone.body.conv1.weight, network.state["backbone.conv1.weight"].double()
    )


A_KEY = {
    "mmdetection": "neck.fpn_convs.0.conv.weight",
    "detectron2": "backbone.fpn_lateral3.weight",
    "torchvision": "backbone.body.conv1.weight",
}


def named(settings, layout, *, meta=None, **tensors) -> dict[str, Tensor]:
    """What becomes of a file of one key, and these tensors, under some settings."""
    file = StateFile({A_KEY[layout]: torch.zeros(1), **tensors}, meta or {})
    return in_torchvisions_names(file, "w.pth", DetectorConfig(weights="w.pth", **settings), {})


@pytest.mark.parametrize(
    ("layout", "settings", "error"),
    [
        (
            "mmdetection",
            {},
            (
                "must have torchvision's names of layers, got mmdetection. Set weights_layout: "
                "mmdetection"
            ),
        ),
        (
            "detectron2",
            {},
            (
                "must have torchvision's names of layers, got detectron2. Set weights_layout: "
                "detectron2"
            ),
        ),
        (
            "detectron2",
            {"weights_layout": "mmdetection"},
            (
                "must have mmdetection's names of layers, got detectron2. Set weights_layout: "
                "detectron2"
            ),
        ),
        (
            "torchvision",
            {"weights_layout": "mmdetection"},
            (
                "must have mmdetection's names of layers, got others, such as "
                "backbone.body.conv1.weight. Set no weights_layout"
            ),
        ),
    ],
)
def test_another_layout_than_the_settings_say_is_refused(layout, settings, error):
    with pytest.raises(WeightsError, match=f"^{re.escape(f'w.pth: {error}')}$"):
        named(settings, layout)
    assert list(named({}, "torchvision")) == ["backbone.body.conv1.weight"]


def deformable(state):
    state["backbone.layer2.0.conv2.conv_offset.weight"] = torch.zeros(18, 128, 3, 3)


def norm_in_fpn(state):
    state["neck.lateral_convs.0.bn.weight"] = torch.ones(32)


@pytest.mark.parametrize(
    ("network", "settings", "change", "error"),
    [
        pytest.param(
            {},
            {"p6_from": "P5"},
            None,
            r"1 keys .* backbone\.fpn\.extra_blocks\.p6\.weight\. Change",
            id="P6 from C5",
        ),
        pytest.param(
            {},
            {},
            deformable,
            r"1 keys .* backbone\.body\.layer2\.0\.conv2\.conv_offset\.weight",
            id="deformable",
        ),
        pytest.param(
            {},
            {},
            norm_in_fpn,
            r"1 keys .* backbone\.fpn\.lateral_convs\.0\.bn\.weight",
            id="norm in the FPN",
        ),
        pytest.param(
            {"finest": 2},
            {},
            None,
            r"6 keys .* backbone\.fpn\.inner_blocks\.0",
            id="levels of Faster R-CNN",
        ),
        pytest.param({}, {"fpn_channels": 64}, None, r"16 keys of other shape", id="another width"),
    ],
)
def test_what_would_silently_be_another_network_is_refused(
    tmp_path, foreign_network, network, settings, change, error
):
    state = foreign_network("mmdetection", **network).state
    if change is not None:
        change(state)
    with pytest.raises(
        WeightsError,
        match=rf"backbone and neck must be those of detector, backbone, .* got {error}",
    ):
        loaded(
            tmp_path / "w.pth",
            state,
            {"weights_layout": "mmdetection", "min_loaded_share": 0.0, **settings},
        )


def test_a_layer_that_the_file_lacks_counts_against_the_smallest_share(tmp_path, foreign_network):
    state = {
        key: value
        for key, value in foreign_network("mmdetection").state.items()
        if "backbone.layer4" not in key
    }
    with pytest.raises(
        WeightsError, match=r"must fill at least 90% of the backbone's keys, got 75%"
    ):
        loaded(tmp_path / "w.pth", state, {"weights_layout": "mmdetection"})


def recorded(style="caffe", extra="on_output", relu=True) -> dict[str, str]:
    """The meta data of a caffe model."""
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
                "(bottleneck_stride: 1x1, p6_from: P5, p7_relu: true, channel_order: BGR, "
                "pixel_mean: [102.98, 115.947, 122.772], pixel_std: [1, 1, 1]), got 3x3, C5, "
                "false, RGB, [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]. Set them"
            ),
        ),
        (
            {**FCOS, **CAFFE, "bottleneck_stride": None},
            recorded(),
            "(bottleneck_stride: 1x1), got 3x3. Set them",
        ),
        (
            {**FCOS, **CAFFE},
            recorded(style="pytorch"),
            "(bottleneck_stride: 3x3), got 1x1. Set them",
        ),
        ({**FCOS, **CAFFE}, recorded(relu=False), "(p7_relu: false), got true. Set them"),
        (
            {**FCOS, **CAFFE},
            recorded(extra="on_lateral"),
            "(p6_from: the last lateral convolution), got P5. Set them",
        ),
        (
            {**FCOS, **CAFFE, "pixel_mean": (103.53, 116.28, 123.675)},
            recorded(),
            "(pixel_mean: [102.98, 115.947, 122.772]), got [103.53, 116.28, 123.675]. Set them",
        ),
    ],
)
def test_settings_that_the_file_itself_contradicts_are_refused(settings, meta, error):
    told = f"w.pth: must be given the settings that it was trained with {error}"
    with pytest.raises(WeightsError, match=f"^{re.escape(told)}$"):
        named(settings, "mmdetection", meta=meta)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({**FCOS, **CAFFE}, id="FCOS"),
        # what has no effect on this detector is not compared
        pytest.param(
            {**FCOS, **CAFFE, "backbone": "resnet18", "bottleneck_stride": None},
            id="a backbone without bottlenecks",
        ),
        pytest.param({**FCOS, **CAFFE, "detector": "faster_rcnn"}, id="Faster R-CNN"),
    ],
)
def test_settings_that_the_file_confirms_are_taken(settings):
    assert list(named(settings, "mmdetection", meta=recorded())) == [
        "backbone.fpn.layer_blocks.0.0.weight"
    ]


def test_pixel_statistics_that_an_old_detectron2_file_holds_must_be_those_set():
    pixels = {
        "pixel_mean": torch.tensor([103.53, 116.28, 123.675]).view(3, 1, 1),
        "pixel_std": torch.ones(3, 1, 1),
    }
    assert {"pixel_mean", "pixel_std"} < set(
        named({"weights_layout": "detectron2"}, "detectron2", **pixels)
    )
    with pytest.raises(
        WeightsError,
        match=(
            r"trained with \(pixel_mean: \[103\.53, 116\.28, 123\.675\], pixel_std: \[1, 1,"
            r" 1\]\), got"
        ),
    ):
        named({"weights_layout": "detectron2", "channel_order": "RGB"}, "detectron2", **pixels)


@pytest.mark.slow
def test_a_student_that_started_from_such_a_file_is_saved_and_opened_as_it_is(
    tmp_path, batch, foreign_network
):
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
def test_a_pickle_of_detectron2s_zoo_gives_the_features_of_the_same_weights_in_torchs_format(
    tmp_path, batch, foreign_network
):
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
