"""The docstrings of settings, read from source when a page or a schema needs them.

pydantic's `use_attribute_docstrings` reads them whenever a class is created, which takes a quarter
of the time that `kdr plan` spends on importing the settings.
"""

import ast
import inspect
import textwrap
from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue


@cache
def descriptions_of(model: type[BaseModel]) -> dict[str, str]:
    """Returns the docstring below each field of a settings class and its bases, by name."""
    found: dict[str, str] = {}
    for base in reversed(model.__mro__):
        if issubclass(base, BaseModel) and base is not BaseModel:
            found |= _own_descriptions(base)
    return {name: text for name, text in found.items() if name in model.model_fields}


def _own_descriptions(model: type[BaseModel]) -> dict[str, str]:
    [definition] = ast.parse(textwrap.dedent(inspect.getsource(model))).body
    assert isinstance(definition, ast.ClassDef)
    return {
        field.target.id: inspect.cleandoc(below.value.value)
        for field, below in zip(definition.body, definition.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(below, ast.Expr)
        and isinstance(below.value, ast.Constant)
        and isinstance(below.value.value, str)
    }


class DescribedJsonSchema(GenerateJsonSchema):
    """pydantic's JSON schema, with the fields' docstrings as descriptions."""

    def model_schema(self, schema: Any) -> JsonSchemaValue:
        """Returns the schema of one settings class."""
        content, model = super().model_schema(schema), schema["cls"]
        for name, text in descriptions_of(model).items():
            known_as = model.model_fields[name].alias or name
            content["properties"][known_as].setdefault("description", text)
        return content
