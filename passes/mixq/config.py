"""Settings of MixQ, as recipes write them."""

__all__ = ["PRESETS", "MixQConfig", "OutlierConfig"]

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from graphopt.passes.mixq.numerics import CAPACITY_STEP


class OutlierConfig(BaseModel):
    """Which input channels stay in 16 bits.

    The default is relative to the layer's rms: an absolute 6.0, as in LLM.int8(), finds almost nothing in small models,
    whose activations are large in few places but not large in absolute terms.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    select: Literal["rms", "threshold", "top", "none"] = Field(
        "rms", description="rule over the calibrated channel maxima; 'none' keeps no outliers"
    )
    multiple: float = Field(
        6.0, gt=0, description="select rms: channels whose maximum exceeds multiple x rms of the input"
    )
    threshold: float = Field(6.0, gt=0, description="select threshold: channels whose maximum exceeds this")
    top: int = Field(64, ge=0, description="select top: this many channels with the largest maxima")
    capacity: int = Field(128, ge=CAPACITY_STEP, description="at most this many; a multiple of 16")

    @field_validator("capacity")
    @classmethod
    def _multiple_of_step(cls, value: int) -> int:
        if value % CAPACITY_STEP:
            raise ValueError(f"must be a multiple of {CAPACITY_STEP}")
        return value


class MixQConfig(BaseModel):
    """Settings of the scheme 'mixq'."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    bits: Literal["w8a8"] = Field("w8a8", description="weight and activation bits")
    outliers: OutlierConfig = OutlierConfig()


PRESETS: dict[str, dict[str, Any]] = {"mixq-w8a8": {"bits": "w8a8"}}
