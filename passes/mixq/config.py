"""Settings of MixQ, as recipes write them."""

__all__ = ["PRESETS", "MixQConfig", "OutlierConfig"]

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from graphopt.passes.mixq.numerics import CAPACITY_STEP
from graphopt.passes.mixq.prediction import SIGMA, SIGMA_RMS


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
    capacity: int = Field(
        128, ge=CAPACITY_STEP, description="at most this many, calibrated and predicted; a multiple of 16"
    )
    online: bool | Literal["auto"] = Field(
        "auto",
        description="add the channels that exceed sigma or sigma_rms at run time; auto: where nothing is calibrated",
    )
    sigma: float = Field(
        SIGMA.default, ge=0, allow_inf_nan=False, description="online: outliers are larger than this; 0: no such bound"
    )
    sigma_rms: float = Field(
        SIGMA_RMS.default,
        ge=0,
        allow_inf_nan=False,
        description="online: and larger than sigma_rms x rms of their token; 0: no such bound",
    )

    @field_validator("capacity")
    @classmethod
    def _multiple_of_step(cls, value: int) -> int:
        if value % CAPACITY_STEP:
            raise ValueError(f"must be a multiple of {CAPACITY_STEP}")
        return value

    @model_validator(mode="after")
    def _online_needs_a_bound(self) -> "OutlierConfig":
        if self.online is True and not self.sigma and not self.sigma_rms:
            raise ValueError("online prediction needs sigma or sigma_rms above 0; set one, or online to false")
        return self

    def predicts(self, *, calibrated: bool) -> bool:
        """Whether outliers are predicted online, given whether there are statistics to select them from."""
        if self.online == "auto":
            return not calibrated and self.select != "none" and max(self.sigma, self.sigma_rms) > 0
        return self.online


class MixQConfig(BaseModel):
    """Settings of the scheme 'mixq'. What is not given follows from ``bits``."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    bits: Literal["w8a8", "w4a8", "w4a4"] = Field("w8a8", description="weight and activation bits")
    group: Literal[0, 64, 128] = Field(
        0, description="columns of a 4-bit weight that share an integer scale; 0: all. Default 64 for 4-bit weights"
    )
    rounding: Literal["nearest", "gptq", "auto"] = Field(
        "nearest",
        description="nearest, gptq (second-order; needs statistics with second moments), or auto: gptq where the "
        "statistics allow it. Default auto for 4-bit weights",
    )
    clip: bool = Field(
        False, description="search scales below those of the largest weight. Default true for 4-bit weights"
    )
    damping: float = Field(0.01, gt=0, description="gptq: share of the mean second moment added to each channel's")
    merge: bool | Literal["auto"] = Field(
        "auto",
        description="make one product of the linears that read one tensor and have the same bits and group; auto: of a "
        "gate and its up-projection only, where no Split is needed behind it",
    )
    fuse_residual: bool = Field(
        False,
        description="add the residual in the linear where nothing else reads its output (o_proj, down_proj), rounded "
        "once, instead of in the quantizing op behind it. Measured on an H100: 3 to 7 % less time with 4-bit weights "
        "and many tokens, as often more as less with 8-bit ones",
    )
    outliers: OutlierConfig = OutlierConfig()

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_bits(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and str(data.get("bits", "")).startswith("w4"):
            return {"group": 64, "rounding": "auto", "clip": True, **data}
        return data

    @model_validator(mode="after")
    def _groups_are_for_4_bits(self) -> "MixQConfig":
        if self.group and self.weight_bits == 8:
            raise ValueError("group is for 4-bit weights; remove it, or set bits to w4a8 or w4a4")
        return self

    @property
    def weight_bits(self) -> int:
        """8 or 4."""
        return int(self.bits[1])

    @property
    def activation_bits(self) -> int:
        """8 or 4."""
        return int(self.bits[3])


#: What follows attention and the activation, by the names that Llama, GPT-2, OPT and BERT give it. The large values
#: there move from channel to channel, so that no outlier set holds them, and 4 bits are too few beside them.
_UNSTABLE = ["*o_proj*", "*down_proj*", "*out_proj*", "*c_proj*", "*fc2*", "*fc_out*", "*output*dense*"]
_HEAD = {"match": "*lm_head*", "settings": {"bits": "w8a8"}}

PRESETS: dict[str, Mapping[str, Any] | Sequence[Mapping[str, Any]]] = {
    "mixq-w8a8": {"bits": "w8a8"},
    "mixq-w4a8": [_HEAD, {"match": "*", "settings": {"bits": "w4a8"}}],
    "mixq-w4a4": [
        _HEAD,
        {"match": _UNSTABLE, "settings": {"bits": "w8a8"}},
        {"match": "*", "settings": {"bits": "w4a4"}},
    ],
}
