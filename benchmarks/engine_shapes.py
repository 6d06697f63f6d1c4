"""Shapes of a decoder's inputs as an engine sees them, from the names of its axes."""

from dataclasses import dataclass
from pathlib import Path

import onnx

#: INT8 values to an element of TensorRT 8's INT32.
_PACK = 4
#: Rows of a cache come in multiples of this: pages of M-ANT's.
_PAGE = 64


@dataclass(frozen=True)
class Call:
    """``seq`` new tokens for each of ``batch`` sequences that have ``past`` tokens already.

    A cache that is updated in place has ``capacity`` rows, or just enough pages for all of them.
    """

    batch: int
    seq: int
    past: int
    capacity: int | None = None

    @property
    def sizes(self) -> dict[str, int]:
        """Sizes of named axes."""
        total = self.past + self.seq
        return {
            "batch_size": self.batch, "sequence_length": self.seq, "past_sequence_length": self.past,
            "total_sequence_length": total, "cache_capacity": self.capacity or -(-total // _PAGE) * _PAGE,
        }  # fmt: skip


class Inputs:
    """The inputs of an ONNX file.

    Args:
        model: the file.
        packed: whether INT8 inputs have a quarter of the elements, as in engines of TensorRT 8, which joins short rows.
    """

    def __init__(self, model: Path, *, packed: bool) -> None:
        self._dims: dict[str, list[int | str]] = {}
        for tensor in onnx.load(model, load_external_data=False).graph.input:
            kind = tensor.type.tensor_type
            dims = [d.dim_param or d.dim_value for d in kind.shape.dim]
            if packed and kind.elem_type == onnx.TensorProto.INT8:
                *_, rows, size = dims
                dims[-2:] = [rows, size // _PACK] if size % _PACK == 0 else [rows * size // _PACK, 1]
            self._dims[tensor.name] = dims

    def shapes(self, call: Call) -> dict[str, tuple[int, ...]]:
        """Shapes of all inputs."""
        sizes = call.sizes
        return {name: tuple(d if isinstance(d, int) else sizes[d] for d in dims) for name, dims in self._dims.items()}

    def text(self, call: Call) -> str:
        """The same as `graphopt.engine.build.BuildOptions` takes them."""
        return ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in self.shapes(call).items())
