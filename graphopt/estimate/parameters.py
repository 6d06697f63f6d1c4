"""The numbers that an estimate assumes, each with the place it comes from."""

__all__ = ["Array", "AttentionBits", "Buffer", "LinearBits", "Parameters", "ProcessingElement", "Quantity"]

import copy
import fnmatch
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator, model_validator

from graphopt.core.recipe import validate
from graphopt.errors import RecipeError, nearest


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Quantity(_Frozen):
    """A number, its unit and where it was read."""

    value: float = Field(gt=0, allow_inf_nan=False)
    unit: str = Field(min_length=1)
    source: str = Field(min_length=1)


class Buffer(_Frozen):
    """An on-chip memory: capacity in bytes, access energies in pJ/bit, leakage in mW."""

    capacity: Quantity
    read: Quantity
    write: Quantity
    static: Quantity


class Buffers(_Frozen):
    """The on-chip memories of an array, the same for all."""

    weights: Buffer
    activations: Buffer
    outputs: Buffer

    @property
    def static(self) -> float:
        """Leakage of all, mW."""
        return self.weights.static.value + self.activations.static.value + self.outputs.static.value


class Dram(_Frozen):
    """Off-chip memory: bits per cycle, pJ per bit, mW while nothing moves."""

    width: Quantity
    energy: Quantity
    static: Quantity


class Quantizer(_Frozen):
    """The unit that quantizes K and V as they are made: µm², pJ per element, bits of V until its window is full."""

    area: Quantity
    energy: Quantity
    window: Quantity


class ProcessingElement(_Frozen):
    """One cell of an array: µm², µW while it works, µW of leakage, products per cycle by "weight x activation" bits."""

    area: Quantity
    dynamic: Quantity
    static: Quantity
    products: dict[str, Quantity]


class LinearBits(_Frozen):
    """Bits of weights and activations of the linears whose names match."""

    match: tuple[str, ...] = Field(min_length=1)
    weight: PositiveInt
    activation: PositiveInt
    source: str = Field(min_length=1)

    @field_validator("match", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


class AttentionBits(_Frozen):
    """Bits of K and V, and of queries and probabilities."""

    cache: PositiveInt
    activation: PositiveInt
    source: str = Field(min_length=1)


class Array(_Frozen):
    """An accelerator: its kind of PE and the bits it needs. ``grouped``: weights and cache store scales per group."""

    pe: str
    linears: tuple[LinearBits, ...] = Field(min_length=1)
    attention: AttentionBits
    grouped: bool = False

    def bits(self, linear: str) -> LinearBits:
        """Return the bits of the linear of that name: of the first entry whose glob matches.

        Raises:
            RecipeError: no entry does.
        """
        for entry in self.linears:
            if any(fnmatch.fnmatchcase(linear, pattern) for pattern in entry.match):
                return entry
        raise RecipeError(f"parameters: no entry of the array's linears matches '{linear}'; end them with match: '*'")


class Parameters(_Frozen):
    """All of parameters.yaml."""

    clock: Quantity
    rows: Quantity
    columns: Quantity
    partial_sum: Quantity
    output: Quantity
    dram: Dram
    buffers: Buffers
    pes: dict[str, ProcessingElement]
    quantizer: Quantizer
    group: Quantity
    group_overhead: Quantity
    arrays: dict[str, Array] = Field(min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> "Parameters":
        if "mant" not in self.arrays:
            raise ValueError("arrays: 'mant' is missing, which the others are compared with")
        for name, array in self.arrays.items():
            if array.pe not in self.pes:
                raise ValueError(f"arrays.{name}.pe: no PE '{array.pe}'{nearest(array.pe, self.pes)}")
            products = self.pes[array.pe].products
            wanted = {f"{e.weight}x{e.activation}" for e in array.linears}
            for product in sorted(wanted | {f"{array.attention.cache}x{array.attention.activation}"}):
                if product not in products:
                    raise ValueError(
                        f"arrays.{name}: PE '{array.pe}' has no product {product}{nearest(product, products)}"
                    )
        return self

    @classmethod
    def load(cls, path: Path | None = None) -> "Parameters":
        """Return the parameters of the package, with the keys of the YAML file ``path`` in place of its own.

        Raises:
            RecipeError: the file cannot be read, or names something unknown or impossible.
        """
        data = yaml.safe_load(files(__package__).joinpath("parameters.yaml").read_text())
        if path is not None:
            data = _replaced(data, _read(path))
        return validate(cls, data, str(path or "parameters.yaml"))

    def stored_bits(self, bits: int, *, grouped: bool) -> float:
        """Return the bits that an element of ``bits`` takes, with its share of what its group stores."""
        return bits + (self.group_overhead.value / self.group.value if grouped else 0.0)


def _read(path: Path) -> Mapping[str, Any]:
    try:
        data = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as e:
        raise RecipeError(f"{path}: cannot be read as YAML ({str(e).splitlines()[0]})") from None
    if not isinstance(data, Mapping):
        raise RecipeError(f"{path}: expected a mapping with keys of parameters.yaml")
    return data


def _replaced(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` with the leaves of ``changes``; a changed quantity must bring its own unit and source."""
    merged = dict(copy.deepcopy(base))
    for key, value in changes.items():
        inner = merged.get(key)
        if isinstance(inner, Mapping) and isinstance(value, Mapping) and "value" not in inner:
            merged[key] = _replaced(inner, value)
        else:
            merged[key] = value
    return merged
