"""Reads class names and training settings from the metadata of mmdetection checkpoints."""

import ast
from collections.abc import Iterator, Mapping
from typing import Any

_STRIDES = {"caffe": "1x1", "pytorch": "3x3"}
_P6_FROM = {
    True: "C5",
    "on_input": "C5",
    "on_output": "P5",
    "on_lateral": "the last lateral convolution, which kdr cannot build",
}
"""`add_extra_convs` of mmdetection's FPN -> the setting `p6_from`."""


def categories(meta: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Returns the class names in the order of the head's outputs; None if the file has none.

    They are under `CLASSES` (mmdetection 2) or `dataset_meta` (mmdetection 3).
    """
    of_dataset = meta.get("dataset_meta")
    places = [meta, *([of_dataset] if isinstance(of_dataset, Mapping) else [])]
    for names in (place.get(key) for place in places for key in ("CLASSES", "classes")):
        if (
            isinstance(names, list | tuple)
            and names
            and all(isinstance(name, str) for name in names)
        ):
            return tuple(names)
    return None


def recorded_settings(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the recorded configuration of the network and its pixels as `DetectorConfig` fields.

    A key with several different values, as in the configuration of a distillation, is left out.

    Args:
        meta: with the configuration as Python text under `cfg` (3.x) or `config` (2.x).
    """
    text = meta.get("cfg", meta.get("config"))
    # The text is parsed, not run: a checkpoint must not execute code. The position of a key in the
    # tree does not matter, because mmdetection 2 and 3 nest the same keys differently.
    try:
        recorded = _unambiguous_values(ast.parse(text)) if isinstance(text, str) else {}
    except (SyntaxError, ValueError, RecursionError):
        recorded = {}
    found: dict[str, Any] = {}
    for style, stride in _STRIDES.items():
        if recorded.get("style") == style:
            found["bottleneck_stride"] = stride
    for source, p6_from in _P6_FROM.items():
        if recorded.get("add_extra_convs") == source:
            p7_relu = recorded.get("relu_before_extra_convs", False)
            found |= {"p6_from": p6_from, "p7_relu": p7_relu}
    in_rgb = recorded.get("bgr_to_rgb", recorded.get("to_rgb"))
    if in_rgb is not None:
        found["channel_order"] = "RGB" if in_rgb else "BGR"
    for name in ("mean", "std"):
        numbers = recorded.get(name)
        if (
            isinstance(numbers, list | tuple)
            and len(numbers) == 3
            and all(isinstance(n, int | float) for n in numbers)
        ):
            found[f"pixel_{name}"] = tuple(numbers)
    return found


def _unambiguous_values(tree: ast.AST) -> dict[str, Any]:
    """Returns the literal values of all names that have one value in the whole text."""
    values_of: dict[str, list[Any]] = {}
    for name, value in _named_values(tree):
        values = values_of.setdefault(name, [])
        if value not in values:
            values.append(value)
    return {name: values[0] for name, values in values_of.items() if len(values) == 1}


def _named_values(tree: ast.AST) -> Iterator[tuple[str, Any]]:
    """Yields (name, literal value) of all keyword arguments and keys of dicts."""
    for node in ast.walk(tree):
        pairs: list[tuple[object, ast.expr]] = []
        if isinstance(node, ast.Call):
            pairs = [(keyword.arg, keyword.value) for keyword in node.keywords]
        elif isinstance(node, ast.Dict):
            pairs = [
                (getattr(key, "value", None), value)
                for key, value in zip(node.keys, node.values, strict=True)
            ]
        for name, value in pairs:
            if isinstance(name, str):
                try:
                    yield name, ast.literal_eval(value)
                except ValueError:  # not a literal, such as a variable or a call
                    continue
