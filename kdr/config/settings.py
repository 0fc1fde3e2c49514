"""Base of the settings classes: frozen, no unknown keys, no infinities or NaN."""

from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]
"""A fraction in [0, 1]."""
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


class Settings(BaseModel):
    """A frozen group of settings. Its fields' docstrings become docs/settings.md."""

    # validators are built when a group is first read: most commands read few groups
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)

    def with_changes(self, **changes: Any) -> Self:
        """Returns a copy with some fields changed."""
        return self.model_copy(update=changes)


def defaulted(settings: Settings, defaults: dict[str, Any]) -> dict[str, Any]:
    """Returns the `defaults` of the fields that the user did not set."""
    return {
        name: value for name, value in defaults.items() if name not in settings.model_fields_set
    }
