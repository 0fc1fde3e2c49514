"""What an mmdetection checkpoint tells of itself: the names of its classes, and the configuration
that it was trained with.
"""

import ast
from collections.abc import Iterator, Mapping
from typing import Any

_STRIDES = {"caffe": "1x1", "pytorch": "3x3"}
_P6_FROM = {
    True: "C5",
    "on_input": "C5",
    "on_output": "P5",
    "on_lateral": "the last lateral convolution",
}


def categories(meta: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Returns the class names in the order of the head's outputs, from `CLASSES` (2.x) or
    `dataset_meta` (3.x); else None.
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
    """Returns what the recorded configuration says of the network and its pixels, in the terms of
    `DetectorConfig`.

    What it says twice and differently, as the configuration of a distillation does, is left out.

    Args:
        meta: with the configuration as Python text under `cfg` (3.x) or `config` (2.x).
    """
    text = meta.get("cfg", meta.get("config"))
    try:
        said = _said_once(ast.parse(text)) if isinstance(text, str) else {}
    except (SyntaxError, ValueError, RecursionError):
        said = {}
    found: dict[str, Any] = {}
    for style, stride in _STRIDES.items():
        if said.get("style") == style:
            found["bottleneck_stride"] = stride
    for source, p6_from in _P6_FROM.items():
        if said.get("add_extra_convs") == source:
            found |= {"p6_from": p6_from, "p7_relu": said.get("relu_before_extra_convs", False)}
    in_rgb = said.get("bgr_to_rgb", said.get("to_rgb"))
    if in_rgb is not None:
        found["channel_order"] = "RGB" if in_rgb else "BGR"
    for name in ("mean", "std"):
        numbers = said.get(name)
        if (
            isinstance(numbers, list | tuple)
            and len(numbers) == 3
            and all(isinstance(n, int | float) for n in numbers)
        ):
            found[f"pixel_{name}"] = tuple(numbers)
    return found


def _said_once(tree: ast.AST) -> dict[str, Any]:
    """Values of named arguments, and of keys of dicts, that the whole text agrees on."""
    said: dict[str, list[Any]] = {}
    for name, value in _named_values(tree):
        values = said.setdefault(name, [])
        if value not in values:
            values.append(value)
    return {name: values[0] for name, values in said.items() if len(values) == 1}


def _named_values(tree: ast.AST) -> Iterator[tuple[str, Any]]:
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
                except ValueError:
                    continue
