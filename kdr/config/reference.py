"""Writes docs/settings.md from the settings classes (`python -m kdr.config.reference`)."""

import json
import types
import typing
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, TypeAdapter
from pydantic.fields import FieldInfo

from kdr.config.data import CocoData, ShapesData
from kdr.config.descriptions import descriptions_of
from kdr.config.renamed import old_names
from kdr.config.study import Study
from kdr.config.trial import TrialConfig

HEAD = """# Settings of a study

Generated from `kdr/config/` with `python -m kdr.config.reference`; a test keeps it up to date.

The path of a setting is its group and its name, such as `trial.training.epochs`. Error messages use
it in full. `--set`, search parameters and the arms of an ablation leave out the leading `trial.`:
`--set training.epochs=24`.
"""


def settings_reference() -> str:
    """Returns the reference as Markdown: one table per group of settings, as in a study file."""
    sections = [HEAD]
    for path, model in settings_groups():
        texts = descriptions_of(model)
        rows = "".join(
            _row(path, name, field, texts[name]) for name, field in model.model_fields.items()
        )
        summary = " ".join((model.__doc__ or "").split())
        sections.append(
            f"## {_title(path, model)}\n\n{summary}\n\n| setting | value | default | meaning "
            f"|\n|---|---|---|---|\n{rows}"
        )
    return "\n".join(sections)


def settings_groups() -> Iterator[tuple[str, type[BaseModel]]]:
    """Yields every group of settings with its path; the path of the study itself is empty."""
    return _groups(Study, "")


def _groups(model: type[BaseModel], path: str) -> Iterator[tuple[str, type[BaseModel]]]:
    yield path, model
    for name, field in model.model_fields.items():
        inner_path = f"{path}.{name}" if path else name
        # `Study.trial` is a plain mapping, so that a search can change it; TrialConfig checks it
        inner = [TrialConfig] if inner_path == "trial" else _models_in(field.annotation)
        for group in inner:
            yield from _groups(group, inner_path)


def _title(path: str, model: type[BaseModel]) -> str:
    if not path:
        return "study file"
    return f"`{path}`" + {
        ShapesData: " (`dataset: shapes`)",
        CocoData: " (`dataset: coco`)",
    }.get(model, "")


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return list(
        dict.fromkeys(model for part in typing.get_args(annotation) for model in _models_in(part))
    )


def _row(group: str, name: str, field: FieldInfo, text: str) -> str:
    former = [f"Formerly `{old}`." for old in old_names(group, name)]
    meaning = " ".join([*text.split(), *former])
    cells = (f"`{field.alias or name}`", _value(field), _default(field), meaning)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "see below"
    return (
        "unset"
        if value is None
        else f"`{json.dumps(TypeAdapter(Any).dump_python(value, mode='json'))}`"
    )


def _value(field: FieldInfo) -> str:
    limits = {"ge": ">= {}", "gt": "> {}", "le": "<= {}", "multiple_of": "multiple of {}"}
    found = [
        text.format(getattr(limit, name))
        for limit in field.metadata
        for name, text in limits.items()
        if hasattr(limit, name)
    ]
    return " ".join([_type(field.annotation), *([", ".join(found)] if found else [])])


def _type(annotation: Any) -> str:
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return ", ".join(f"`{part}`" for part in parts)
    if origin is typing.Annotated:
        return _type(parts[0])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(_type(part) for part in parts if part is not type(None)))
    if origin is tuple:
        if Ellipsis in parts:
            return f"list of {_plural(_type(parts[0]))}"
        return "[low, high]" if len(parts) == 2 else f"list of {len(parts)} {_type(parts[0])}s"
    if origin is dict or annotation is dict:
        return "group"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "group"
    return {int: "whole number", float: "number", str: "text", bool: "true or false"}.get(
        annotation, "value"
    )


def _plural(kind: str) -> str:
    return f"{kind}s" if kind in ("whole number", "number", "text", "value", "group") else kind


if __name__ == "__main__":
    print(settings_reference(), end="")
