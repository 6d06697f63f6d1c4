"""Where a builder gets its weights from: one small protocol, and seeded random weights that follow it."""

__all__ = ["RandomWeights", "WeightSource", "check_all_read"]

import re
import zlib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from graphopt.errors import ModelError, nearest

ConfigT_co = TypeVar("ConfigT_co", covariant=True)


class WeightSource(Protocol[ConfigT_co]):
    """Weights under Hugging Face names, delivered one at a time.

    A builder asks for each tensor once and drops it before it asks for the next, so a source should read or compute
    lazily: that is what bounds the memory of building a model of any size.
    """

    @property
    def config(self) -> ConfigT_co:
        """Sizes and constants of the model."""

    def tensor(self, name: str) -> npt.NDArray[Any]:
        """Return one weight: matrices are [out, in]; dtype float32, float16 or bfloat16.

        Raises:
            ModelError: the source has no such tensor, or cannot decode it.
        """


_LAYER = re.compile(r"(model\.layers|blk)\.\d+\.")


def check_all_read(path: Path, stored: Iterable[str], read: Collection[str]) -> None:
    """Check that no layer has a norm or a bias that its builder leaves out: the model would be another one.

    Args:
        path: of the weights, for the message.
        stored: names of all tensors there, Hugging Face's or llama.cpp's.
        read: names of those that the builder asks for.

    Raises:
        ModelError: one has; layers of which nothing is read do not count.
    """
    layers = {found[0] for name in read if (found := _LAYER.match(name))}
    for name in stored:
        found = _LAYER.match(name)
        if name not in read and name.endswith((".bias", "norm.weight")) and found and found[0] in layers:
            raise ModelError(
                f"{path}: tensor '{name}' is of no decoder that can be built, or its configuration lacks it"
            )


class SizedConfig(Protocol):
    """A configuration that knows its weights."""

    def weight_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Names and shapes of all weights."""


SizedT = TypeVar("SizedT", bound=SizedConfig)


class RandomWeights(Generic[SizedT]):
    """Seeded random weights of a realistic size, each a function of (seed, name) alone.

    Matrices and biases are normal with standard deviation 0.02; norm scales are 1 + 0.1 normal. Planted outliers
    give the activations the channels that make quantization hard: the same few channels of the residual stream are
    scaled in every norm, and the same few rows in every matrix that widens the MLP.

    Args:
        config: sizes and constants of the model.
        seed: of all tensors.
        outliers: number of planted channels, at most the hidden size.
        outlier_scale: by how much they exceed the others.

    Raises:
        ModelError: more outliers than channels.
    """

    def __init__(self, config: SizedT, seed: int = 0, *, outliers: int = 0, outlier_scale: float = 20.0) -> None:
        self.config = config
        self._shapes = config.weight_shapes()
        self._seed = seed
        self._outliers = outliers
        self._outlier_scale = outlier_scale
        width = min(shape[0] for name, shape in self._shapes.items() if _is_planted(name))
        if not 0 <= outliers <= width:
            raise ModelError(f"{outliers} outlier channels do not fit into a model of width {width}")

    def tensor(self, name: str) -> npt.NDArray[np.float32]:
        """Return the float32 tensor ``name``; the same values on every call."""
        if name not in self._shapes:
            raise ModelError(f"random weights: no tensor '{name}'{nearest(name, self._shapes)}")
        shape = self._shapes[name]
        values = np.random.default_rng([self._seed, zlib.crc32(name.encode())]).standard_normal(shape, np.float32)
        values = 1 + np.float32(0.1) * values if _is_norm_scale(name) else np.float32(0.02) * values
        if _is_planted(name):
            values[self._channels(shape[0])] *= np.float32(self._outlier_scale)
        return values

    def _channels(self, width: int) -> npt.NDArray[np.int64]:
        """The planted channels of a tensor with ``width`` rows: the same for all tensors of that width."""
        return np.sort(np.random.default_rng([self._seed, width]).permutation(width)[: self._outliers])


def _is_norm_scale(name: str) -> bool:
    return name.lower().endswith("norm.weight")


def _is_planted(name: str) -> bool:
    """Whether the rows of this tensor make channels of an activation that linears read."""
    return _is_norm_scale(name) or name.rpartition(".")[0].endswith(("up_proj", "intermediate.dense"))
