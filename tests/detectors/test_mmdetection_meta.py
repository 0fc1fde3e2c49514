"""Class names and settings in the metadata of mmdetection's files."""

from typing import Any

import pytest

from kdr.detectors.mmdetection_meta import categories, recorded_settings

CAFFE_3X = """
model = dict(
    type='FCOS',
    data_preprocessor=dict(mean=[102.9801, 115.9465, 122.7717], std=[1.0, 1.0, 1.0],
                           bgr_to_rgb=False,
                           pad_size_divisor=32),
    backbone=dict(type='ResNet', depth=50, style='caffe'),
    neck=dict(type='FPN', start_level=1, add_extra_convs='on_output', num_outs=5,
              relu_before_extra_convs=True))
"""
PYTORCH_2X = """
img_norm_cfg = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
train_pipeline = [dict(type='Normalize', mean=[123.675, 116.28, 103.53],
                       std=[58.395, 57.12, 57.375], to_rgb=True)]
model = {'backbone': {'type': 'ResNet', 'style': 'pytorch'},
         'neck': dict(type='FPN', add_extra_convs='on_input', num_outs=5)}
"""


@pytest.mark.parametrize(
    ("meta", "names"),
    [
        ({"CLASSES": ("a", "b")}, ("a", "b")),
        ({"dataset_meta": {"classes": ["a", "b"], "palette": [1]}}, ("a", "b")),
        ({"dataset_meta": {"CLASSES": ("a",)}}, ("a",)),
        ({"CLASSES": None, "dataset_meta": {"classes": ("b",)}}, ("b",)),
        ({"CLASSES": object()}, None),
        ({"CLASSES": ()}, None),
        ({"CLASSES": (1, 2)}, None),
        ({"dataset_meta": object()}, None),
        ({}, None),
    ],
)
def test_class_names_are_found_where_either_version_stores_them(
    meta: dict[str, Any], names: tuple[str, ...] | None
) -> None:
    assert categories(meta) == names


def test_a_caffe_configuration_is_understood() -> None:
    assert recorded_settings({"cfg": CAFFE_3X}) == {
        "bottleneck_stride": "1x1",
        "p6_from": "P5",
        "p7_relu": True,
        "channel_order": "BGR",
        "pixel_mean": (102.9801, 115.9465, 122.7717),
        "pixel_std": (1.0, 1.0, 1.0),
    }


def test_a_pytorch_configuration_of_version_2_is_understood() -> None:
    assert recorded_settings({"config": PYTORCH_2X}) == {
        "bottleneck_stride": "3x3",
        "p6_from": "C5",
        "p7_relu": False,
        "channel_order": "RGB",
        "pixel_mean": (123.675, 116.28, 103.53),
        "pixel_std": (58.395, 57.12, 57.375),
    }


@pytest.mark.parametrize(
    "text",
    [
        None,
        b"model = 1",
        "model = dict(",
        "x = dict(style=style, mean=[1, 2], std=3, add_extra_convs=[1])",
        "student = dict(style='caffe')\nteacher = dict(style='pytorch')",
    ],
)
def test_ambiguous_and_unreadable_values_are_left_out(text: str | bytes | None) -> None:
    assert recorded_settings({"cfg": text}) == {}
