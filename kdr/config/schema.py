"""The JSON schema of study files, for completion and checks in editors.

It covers names, types and ranges. `kdr plan` checks the rules between settings.
"""

from typing import Any

from pydantic import BaseModel

from kdr.config.descriptions import DescribedJsonSchema
from kdr.config.reference import settings_groups
from kdr.config.renamed import old_names
from kdr.config.search import EarlyStopping, Sampler
from kdr.config.study import Study
from kdr.config.trial import TrialConfig


def study_schema() -> dict[str, Any]:
    """Returns the schema (draft 2020-12) as plain values."""
    schema = Study.model_json_schema(schema_generator=DescribedJsonSchema)
    trial = TrialConfig.model_json_schema(
        ref_template="#/$defs/{model}", schema_generator=DescribedJsonSchema
    )
    definitions = {**schema.pop("$defs"), **trial.pop("$defs"), "TrialConfig": trial}
    _add_old_names(definitions)
    for settings, names in (
        (Sampler, _fields(Sampler)),
        (EarlyStopping, ["none", *_fields(EarlyStopping)]),
    ):
        # a validator also accepts a bare name, which pydantic's schema does not show
        definitions[settings.__name__] = {
            "anyOf": [{"enum": names}, definitions[settings.__name__]]
        }
    properties = dict(schema.pop("properties"))
    properties["trial"] = {
        "$ref": "#/$defs/TrialConfig",
        "description": properties["trial"]["description"],
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A kdr study",
        **schema,
        "properties": properties,
        "$defs": dict(sorted(definitions.items())),
    }


def _add_old_names(definitions: dict[str, Any]) -> None:
    """Adds the old names of renamed settings, marked as deprecated."""
    for path, model in settings_groups():
        for name in model.model_fields:
            for old in old_names(path, name):
                properties = definitions[model.__name__]["properties"]
                present = {
                    key: value for key, value in properties[name].items() if key != "default"
                }
                properties[old] = present | {
                    "deprecated": True,
                    "description": f"Renamed to `{name}`.",
                }


def _fields(settings: type[BaseModel]) -> list[str]:
    return list(settings.model_fields)
