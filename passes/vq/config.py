"""Settings of VQ-LLM weights, as recipes write them."""

__all__ = ["PRESETS", "VQConfig"]

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from graphopt.passes.vq import e8
from graphopt.passes.vq.numerics import MAX_BITS

_LATTICE = {"vector": e8.VECTOR, "bits": e8.BITS}


class VQConfig(BaseModel):
    """Settings of the scheme 'vq': VQ<vector, bits, residuals>, which is bits · residuals / vector bits per weight."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    vector: Literal[2, 4, 8, 16] = Field(4, description="v: consecutive weights of a row that share a code")
    bits: int = Field(8, ge=1, le=MAX_BITS, description="b: bits of a code; a codebook has 2^b entries")
    residuals: int = Field(1, ge=1, le=4, description="r: codes of a vector, whose entries are added")
    tile: int = Field(
        256, ge=0, description="rows and columns that share codebooks, a multiple of 16; 0: the whole weight"
    )
    codebook: Literal["trained", "e8"] = Field(
        "trained",
        description="entries trained on the weight, or the points of the lattice E8, which are computed and need no "
        "memory, behind a randomized Hadamard transform",
    )
    rounding: Literal["nearest", "gptq", "auto"] = Field(
        "auto",
        description="nearest, gptq (second-order; needs statistics with second moments), or auto: gptq where the "
        "statistics allow it",
    )
    rounds: int = Field(3, ge=0, description="how often codebooks and codes are improved in turns")
    damping: float = Field(0.01, gt=0, description="share of the mean second moment added to each channel's")
    seed: int = Field(0, ge=0, description="of everything random")
    codes: str | None = Field(
        None,
        description="archive of codes that 'graphopt model safetensors' writes of an AQLM checkpoint; linears that it "
        "has take them, and the other settings are for those that it lacks",
    )

    @model_validator(mode="before")
    @classmethod
    def _lattice_decides(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and data.get("codebook") == "e8":
            return {**_LATTICE, "residuals": len(e8.RATIOS), "tile": 0, **data}
        return data

    @model_validator(mode="after")
    def _fits(self) -> "VQConfig":
        if self.tile % 16:
            raise ValueError(f"tile {self.tile} is no multiple of 16")
        if self.codebook == "e8":
            if (self.vector, self.bits, self.tile) != (e8.VECTOR, e8.BITS, 0):
                raise ValueError("codebook e8 has vector 8, bits 16 and tile 0; remove these keys")
            if self.residuals > len(e8.RATIOS):
                raise ValueError(f"codebook e8 has 1 or {len(e8.RATIOS)} residuals")
        return self


PRESETS: dict[str, Mapping[str, Any]] = {
    "vq-quip4": {"codebook": "e8", "rounds": 1},
    "vq-aqlm3": {"vector": 8, "bits": 12, "residuals": 2, "tile": 0, "rounds": 2},
    "vq-aqlm2": {"vector": 8, "bits": 8, "residuals": 2, "tile": 0, "rounds": 4},
    "vq-gptvq2": {"vector": 4, "bits": 8, "residuals": 1, "tile": 256},
}
