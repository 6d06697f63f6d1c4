"""Settings of a cache in the activation type."""

__all__ = ["StaticConfig"]

from pydantic import BaseModel, ConfigDict, Field


class StaticConfig(BaseModel):
    """Keys and values as the model computes them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    capacity: int | None = Field(
        default=None, ge=1, description="Rows of the cache for each sequence; null leaves it a dynamic axis."
    )
