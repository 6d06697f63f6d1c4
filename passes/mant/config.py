"""Settings of M-ANT, as recipes write them."""

__all__ = ["PRESETS", "MantConfig"]

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class MantConfig(BaseModel):
    """Settings of the scheme 'mant'."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    bits: Literal["w4a16", "w4a8"] = Field("w4a16", description="weight and activation bits; 16 is the model's type")
    types: Literal["mant", "nf4", "int4"] = Field(
        "mant", description="what groups choose from: the sixteen types of M-ANT, or one type for all"
    )
    group: Literal[32, 64, 128] = Field(64, description="columns that share a type and a scale")
    one_pass: bool = Field(
        False, description="w4a8: round the types to int8 before quantizing, so that one integer product is all"
    )
    activations: Literal["token", "group"] = Field(
        "token", description="w4a8: a scale for each token, or for each token and group of columns"
    )
    exact: bool = Field(
        False,
        description="w4a8: keep kernels from rounding weights before the product of many tokens; they take two to "
        "three times as long",
    )
    search: Literal["weight", "diagonal", "output", "auto"] = Field(
        "auto",
        description="error by which a group chooses: of its weights; weighted by the mean square of their inputs; of "
        "its output (needs second moments); auto: the last of these that the statistics allow",
    )
    clip: bool = Field(True, description="try scales below that of the largest weight, too")
    rounding: Literal["nearest", "gptq", "auto"] = Field(
        "auto",
        description="nearest, gptq (second-order; needs statistics with second moments), or auto: gptq where the "
        "statistics allow it",
    )
    damping: float = Field(0.01, gt=0, description="gptq: share of the mean second moment added to each channel's")

    @model_validator(mode="after")
    def _integer_settings_need_integers(self) -> "MantConfig":
        for name in ("one_pass", "exact"):
            if self.bits == "w4a16" and getattr(self, name):
                raise ValueError(f"{name} is for w4a8; remove it, or set bits to w4a8")
        if self.bits == "w4a16" and self.activations == "group":
            raise ValueError("activations are scaled for w4a8 alone; remove the key, or set bits to w4a8")
        if self.bits == "w4a8" and self.types == "nf4" and not self.one_pass:
            raise ValueError("nf4 has no exact int8 form; set one_pass to true, or bits to w4a16")
        return self


PRESETS: dict[str, Mapping[str, Any] | Sequence[Mapping[str, Any]]] = {
    "mant-w4a16": {},
    "mant-w4a8": {"bits": "w4a8"},
    "mant-int8": {"bits": "w4a8", "one_pass": True},
    "nf4": {"types": "nf4"},
    "int4": {"types": "int4"},
}
