"""Validation with errors that a user can act on: path, rule, value, fix."""

import difflib
import json
import re
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from kdr.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)


def validated(model: type[Model], content: Mapping[str, Any], *, prefix: str = "") -> Model:
    """Validates plain values against a settings class, strictly: text is not converted to a number,
    nor a number to a boolean.

    Args:
        model: the settings class.
        content: values read from YAML or JSON.
        prefix: path of these settings in the study, prepended to every path in errors.

    Raises:
        ConfigError: with one line per problem.
    """
    try:
        # As JSON, because strict mode on Python values would refuse a list for a tuple.
        return model.model_validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        raise ConfigError(_lines(error, model, content, prefix)) from None


_RULES = {
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "tuple_type": "must be a list",
    "dict_type": "must be a group of settings",
    "model_type": "must be a group of settings",
    "string_pattern_mismatch": (
        "must start with a letter or digit, followed by letters, digits, '.', '_' or '-'"
    ),
    "union_tag_not_found": "must be given",
    "missing": "must be given",
}
"""Kind of pydantic error -> our rule. Other kinds keep pydantic's own message."""


def _lines(
    error: ValidationError, model: type[BaseModel], content: Mapping[str, Any], prefix: str
) -> list[str]:
    # grouped by path, because pydantic reports a value once for each member of a union that it
    # tried: `micro_batch: x` becomes one line, "must be a whole number or 'auto'"
    rules: dict[str, list[str]] = {}
    values: dict[str, str] = {}
    for found in error.errors(include_url=False):
        location, kind, context = found["loc"], found["type"], found.get("ctx", {})
        if kind == "too_short" and len(found["input"]) >= context["min_length"]:
            # pydantic counts only the valid values, and reports each invalid value as well
            continue
        path = ".".join(
            [*([prefix] if prefix else []), *map(str, _present(location, content, kind))]
        )
        if kind == "extra_forbidden":
            rule = "no such setting. " + _suggestion(model, location)
        elif kind == "value_error":
            inner, rule = _inner_path(str(context["error"]))
            path = ".".join(part for part in (path, inner) if part)
        elif kind in ("union_tag_invalid", "union_tag_not_found"):
            path += "." + context["discriminator"].strip("'")
            rule = (
                f"must be one of {context['expected_tags']}" if "tag" in context else _RULES[kind]
            )
            values[path] = (
                _got(context["tag"], context["expected_tags"]) if "tag" in context else ""
            )
        else:
            rule = _rule(kind, context, found["msg"])
            values[path] = (
                "" if kind == "missing" else _got(found["input"], context.get("expected", ""))
            )
        rules.setdefault(path, [])
        if rule not in rules[path]:
            rules[path].append(rule)
    return [_line(path, found, values.get(path, "")) for path, found in rules.items()]


def _line(path: str, rules: list[str], value: str) -> str:
    rule = " or ".join([rules[0], *(other.removeprefix("must be ") for other in rules[1:])])
    return f"{path}: {rule}{value}" if path else rule


def _rule(kind: str, context: Mapping[str, Any], message: str) -> str:
    if kind in ("too_short", "too_long"):
        least, number = (
            ("at least", context.get("min_length"))
            if kind == "too_short"
            else ("at most", context["max_length"])
        )
        return f"needs {least} {number} value{'' if number == 1 else 's'}"
    return _RULES.get(kind, message.replace("Input should be", "must be", 1))


def _got(value: Any, expected: str) -> str:
    """Returns the end of a line: the value, and the closest match among the words that pydantic
    lists in quotes.
    """
    close = (
        difflib.get_close_matches(value, re.findall("'([^']*)'", expected), n=1)
        if isinstance(value, str)
        else []
    )
    return f", got {_shown(value)}" + (f". Did you mean '{close[0]}'?" if close else "")


def _present(location: tuple[int | str, ...], content: Any, kind: str) -> list[int | str]:
    """Returns the parts of a location that exist in the content. Pydantic's locations also have
    parts for the union members that it tried.
    """
    parts: list[int | str] = []
    for index, part in enumerate(location):
        in_mapping = isinstance(content, Mapping) and part in content
        in_sequence = isinstance(content, list) and isinstance(part, int) and part < len(content)
        if in_mapping or in_sequence:
            parts.append(part)
            content = content[part]
        elif kind == "missing" and index == len(location) - 1:
            parts.append(part)
    return parts


def _inner_path(message: str) -> tuple[str, str]:
    """Splits a message from one of our validators, `setting.path: rule`; the path may be
    missing.
    """
    head, colon, rule = message.partition(": ")
    if colon and head and all(part.isidentifier() for part in head.split(".")):
        return head, rule
    return "", message


def _shown(value: Any) -> str:
    """Returns an invalid value as the user wrote it, strings in quotes, cut off at 80
    characters.
    """
    # not `value_text`: here "5" and 5 must look different, and keys keep the order of the file
    text = repr(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."


def _suggestion(model: type[BaseModel], location: tuple[int | str, ...]) -> str:
    names = sorted(_names_at(model, location[:-1]))
    close = difflib.get_close_matches(str(location[-1]), names, n=1, cutoff=0.5)
    hint = f"Did you mean '{close[0]}'? " if close else ""
    return f"{hint}Settings: {', '.join(names)}" if names else "This group has no settings"


def _names_at(model: type[BaseModel], location: tuple[int | str, ...]) -> set[str]:
    """Returns the names of the settings in the group at a location."""
    models = {model}
    for part in location:
        inner: set[type[BaseModel]] = set()
        for candidate in models:
            for name, field in candidate.model_fields.items():
                if part in (name, field.alias):
                    inner |= _models_in(field.annotation)
        # a part that is not a field is the tag of a union member, or a key of a mapping of groups
        tagged = {candidate for candidate in models if part in _tags(candidate)}
        models = inner or tagged or models
    return {
        field.alias or name
        for candidate in models
        for name, field in candidate.model_fields.items()
    }


def _models_in(annotation: Any) -> set[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {annotation}
    return {model for part in typing.get_args(annotation) for model in _models_in(part)}


def _tags(model: type[BaseModel]) -> tuple[Any, ...]:
    return tuple(
        tag for field in model.model_fields.values() for tag in typing.get_args(field.annotation)
    )
