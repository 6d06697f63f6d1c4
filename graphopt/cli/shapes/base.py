"""The base of all shapes."""

__all__ = ["Shape", "of"]

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


def of(description: str) -> Any:
    """Return a field that is always there."""
    return Field(description=description)


class Shape(BaseModel):
    """An object whose fields are known, all of them."""

    model_config = ConfigDict(extra="forbid", strict=True)
