"""`GraphBuilder`: what the model builders write nodes with."""

__all__ = ["DTYPES", "GraphBuilder", "Progress", "save_built"]

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs

from graphopt import ir
from graphopt.errors import ModelError, OutputError, nearest
from graphopt.ir import Model, WeightStore
from graphopt.ir.weights import onnx_dtype
from graphopt.models.weights import WeightSource

#: Called after each weight with (weights written, weights in all, name of the weight).
Progress = Callable[[int, int, str], None]

#: Activation types that a model can be built in.
DTYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
#: ReduceMean takes its axes as an input since 18; LayerNormalization exists since 17.
_OPSETS = range(17, 24)


class GraphBuilder:
    """Writes a graph node by node, and its weights one by one to a spool.

    A node ``/a/b/MatMul`` gives the tensor ``/a/b/MatMul_output_0``: names depend on the structure alone, so two
    builds of one configuration are identical.

    Args:
        name: of the graph.
        shapes: names and stored shapes of all weights that the source will be asked for.
        source: where the weights come from.
        dtype: activation and weight type, a key of `DTYPES`.
        opset: standard ONNX opset, 17 to 23.
        spool: folder for the weights until they are saved; None for the system's temporary folder.
        progress: told about every weight.

    Raises:
        ModelError: dtype or opset is not supported.
    """

    def __init__(
        self,
        name: str,
        shapes: Mapping[str, tuple[int, ...]],
        source: WeightSource[Any],
        *,
        dtype: str = "float32",
        opset: int = 18,
        spool: Path | None = None,
        progress: Progress | None = None,
    ) -> None:
        if dtype not in DTYPES:
            raise ModelError(f"dtype '{dtype}' is not supported{nearest(dtype, DTYPES)}")
        if opset not in _OPSETS:
            raise ModelError(f"opset {opset} is not supported; give {_OPSETS[0]} to {_OPSETS[-1]}")
        self.dtype = DTYPES[dtype]
        self.opset = opset
        self.model = Model(graph=gs.Graph(name=name, opset=opset), store=WeightStore(spool))
        self.model.shell.producer_name = "graphopt.models"
        self.model.shell.ir_version = onnx.helper.find_min_ir_version_for(
            [onnx.helper.make_opsetid("", opset)], ignore_unknown=False
        )
        self._source = source
        self._shapes = shapes
        self._progress = progress
        self._written = 0
        self._constants: dict[str, Any] = {}

    @property
    def masked_score(self) -> float:
        """Added to the attention score of a position that must not be seen: half the most negative finite number.

        Half, so that adding a score to it cannot overflow to -inf: a row of -inf only (a padding token sees nothing)
        would become NaN in the softmax, while a row of equal finite values becomes a harmless uniform one.
        """
        return float(ml_dtypes.finfo(self.dtype).min) / 2  # type: ignore[no-untyped-call]

    def input(self, name: str, dtype: npt.DTypeLike, shape: list[int | str]) -> Any:
        """Add a graph input; strings in ``shape`` are dynamic dimensions."""
        variable = gs.Variable(name, onnx_dtype(dtype), shape)
        self.model.graph.inputs.append(variable)
        return variable

    def output(self, variable: Any, name: str, dtype: npt.DTypeLike, shape: list[int | str]) -> None:
        """Make ``variable`` a graph output called ``name``."""
        variable.name, variable.dtype, variable.shape = name, onnx_dtype(dtype), shape
        self.model.graph.outputs.append(variable)

    def op(self, op_type: str, inputs: list[Any], name: str, **attrs: Any) -> Any:
        """Add a node ``name`` of one output and return that output."""
        variable = gs.Variable(f"{name}_output_0")
        self.model.graph.nodes.append(gs.Node(op_type, name, attrs, inputs, [variable]))
        return variable

    def cast(self, x: Any, dtype: npt.DTypeLike, name: str) -> Any:
        """Cast ``x`` (of a type known to differ from ``dtype`` only where the model is not float32)."""
        if np.dtype(dtype) == self.dtype == np.float32:
            return x
        return self.op("Cast", [x], name, to=onnx_dtype(dtype))

    def ints(self, *values: int) -> Any:
        """Return the int64 vector of ``values``: axes, shapes, slice bounds."""
        return self._constant("_".join(["ints", *map(str, values)]), np.array(values, np.int64))

    def scalar(self, value: float, dtype: npt.DTypeLike) -> Any:
        """Return a scalar of ``dtype``."""
        return self._constant(f"{np.dtype(dtype).name}_{value:.9g}", np.array(value, dtype))

    def mean(self, x: Any, name: str) -> Any:
        """Mean over the last axis, which is kept."""
        if self.opset < 18:
            return self.op("ReduceMean", [x], name, axes=[-1], keepdims=1)
        return self.op("ReduceMean", [x, self.ints(-1)], name, keepdims=1)

    def weight(self, name: str, *, transpose: bool = False) -> Any:
        """Fetch, check, convert and spool one weight; matrices for MatMul are stored transposed, [in, out].

        Raises:
            ModelError: its shape is not the configuration's, or its values do not fit the model's dtype.
        """
        values = self._source.tensor(name)
        if values.shape != self._shapes[name]:
            raise ModelError(
                f"weight '{name}' has shape {list(values.shape)}, but the configuration needs "
                f"{list(self._shapes[name])}"
            )
        if values.size and not self._fits(values):
            raise ModelError(
                f"weight '{name}' has NaN, infinite or, in {self.dtype.name}, too large values; "
                "check the checkpoint or choose another dtype"
            )
        converted = np.ascontiguousarray((values.T if transpose else values).astype(self.dtype, copy=False))
        constant = self.model.store.put(name, converted)
        self._written += 1
        if self._progress:
            self._progress(self._written, len(self._shapes), name)
        return constant

    def linear(self, x: Any, module: str, scope: str) -> Any:
        """``x @ W (+ bias)`` with the weights ``module.weight`` [out, in] and, if there is one, ``module.bias``."""
        y = self.op("MatMul", [x, self.weight(f"{module}.weight", transpose=True)], f"{scope}/MatMul")
        if f"{module}.bias" in self._shapes:
            y = self.op("Add", [y, self.weight(f"{module}.bias")], f"{scope}/Add")
        return y

    def constant(self, name: str, values: npt.NDArray[Any]) -> Any:
        """Return a named constant that is part of the model's structure, such as rotary frequencies."""
        return self.model.store.put(name, values)

    def _fits(self, values: npt.NDArray[Any]) -> bool:
        """Whether all values are finite in the model's dtype.

        Rounding is monotone and the extremes are NaN if any element is, so they speak for the whole array; they are
        taken before the conversion because numpy reduces float32 many times faster than float16.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            extremes = np.array([values.max(), values.min()]).astype(self.dtype)
        return bool(np.isfinite(extremes).all())

    def _constant(self, name: str, values: npt.NDArray[Any]) -> Any:
        if name not in self._constants:
            self._constants[name] = gs.Constant(f"const.{name}", values)
        return self._constants[name]


def save_built(build: Callable[[Path], Model], path: str | os.PathLike[str]) -> list[Path]:
    """Save what ``build`` returns to ``path``, spooling its weights beside it: the disk that must have room anyway.

    The spool is gone when this returns or raises, whatever still refers to the model.

    Args:
        build: makes the model, given the folder for its spool.
        path: the .onnx file; weights go to ``<path>.data``.

    Raises:
        OutputError: the folder of ``path`` is missing or cannot be written.
    """
    path = Path(path)
    try:
        spool = tempfile.TemporaryDirectory(dir=path.parent, prefix=".graphopt-")
    except OSError as e:
        raise OutputError(f"cannot write {path}: {e.strerror or e}; nothing was written") from e
    with spool as folder:
        return ir.save(build(Path(folder)), path, external_data=True)
