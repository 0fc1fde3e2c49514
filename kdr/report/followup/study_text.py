"""A study as the text of a YAML file that the strict reader accepts."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from kdr.config.strict_yaml import parse_yaml
from kdr.config.study import study_from
from kdr.errors import ConfigError


def study_text(content: Mapping[str, Any], head: Iterable[str], *, source: str) -> str:
    """Returns the text of a study file with a comment at its head.

    Args:
        content: the study as plain values, with absolute paths.
        head: lines of the comment.
        source: where the settings come from, for errors.

    Raises:
        ConfigError: if this version cannot read the settings.
    """
    # in the order of the settings classes, as in docs/settings.md
    body = yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    text = "".join(f"# {line}\n" for line in head) + body
    # read back at once, because `run` must accept what `--export` writes
    try:
        study_from(parse_yaml(text, source=source), folder=Path("/"))
    except ConfigError as error:
        raise ConfigError(f"{source}: this version cannot read its settings: {error}") from error
    return text


class _Dumper(yaml.SafeDumper):
    """Writes lists on one line, and quotes every text that the strict reader reads as a number."""


_Dumper.add_representer(
    list,
    lambda dumper, data: dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=True),
)
# PyYAML follows YAML 1.1, where 1e4 is text and needs no quotes; the strict reader reads it as a
# number, so such texts must be quoted
_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$"),
    list("-+.0123456789"),
)
