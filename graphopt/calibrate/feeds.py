"""Model inputs from token chunks, from an .npz, or from a seeded generator.

A feed is a mapping from input name to array, one for each input that the model declares. Inputs of language models are
known by name: from ``input_ids`` alone follow the attention mask, the positions, the segment and an empty KV cache.
Random ids go into every input whose name ends so, such as the ``decoder_input_ids`` of a model with two stacks.
"""

__all__ = ["TOKENS", "Feed", "Input", "declared", "from_npz", "from_tokens", "random", "role_of"]

import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.calibrate.head_size import head_size
from graphopt.errors import CalibrationError, nearest
from graphopt.ir import Model, kv_cache, query, weights
from graphopt.ir.kv_cache import KvCache

Feed = dict[str, np.ndarray]

TOKENS = "input_ids"
_PAST = re.compile(r"^past|\.past|_past|^cache_[kv]")
#: In random float data one channel in this many is an outlier of this magnitude, as in real activations.
_OUTLIER_EVERY, _OUTLIER_SCALE = 64, 20.0


@dataclass(frozen=True)
class Input:
    """One declared input: name, numpy dtype, shape (a number, or a symbol, or None where the size is free), for token
    ids the size of the embedding table they index (None if that is not known), and what it is to a cache that is
    updated in place: the cache itself, or the number of rows that are in it."""

    name: str
    dtype: np.dtype
    shape: tuple[int | str | None, ...]
    vocabulary: int | None = None
    role: Literal["cache", "start"] | None = None


def declared(model: Model) -> list[Input]:
    """Return the inputs that ``model`` declares.

    Raises:
        CalibrationError: an input has no type or no rank.
    """
    cache = kv_cache.read(model.shell.metadata_props)
    result = []
    for tensor in model.graph.inputs:
        if tensor.dtype is None or tensor.shape is None:
            raise CalibrationError(f"input '{tensor.name}' of the model declares no type or no shape; export it again")
        dtype = weights.numpy_dtype(weights.onnx_dtype(tensor.dtype))
        shape = tuple(int(d) if isinstance(d, int | np.integer) else d for d in tensor.shape)
        if len(shape) == 4 and not isinstance(shape[-1], int):
            shape = (*shape[:-1], head_size(tensor) or shape[-1])
        result.append(Input(tensor.name, dtype, shape, _vocabulary(tensor), role_of(tensor.name, cache)))
    return result


def role_of(name: str, cache: KvCache | None) -> Literal["cache", "start"] | None:
    """Return what the input ``name`` is to a cache that is updated in place."""
    if cache is None:
        return None
    return "start" if name == cache.start else "cache" if name in dict(cache.pairs) else None


def from_tokens(inputs: Sequence[Input], tokens: np.ndarray, *, past: int = 0) -> Feed:
    """Return the feed of one batch of token chunks, with an empty KV cache.

    Args:
        inputs: what the model declares; names follow the exporters (input_ids, attention_mask, position_ids,
            token_type_ids, past_key_values.*).
        tokens: (B, S) integers.
        past: tokens before these, which a cache holds; then ``inputs`` are those beside the cache.

    Raises:
        CalibrationError: an input cannot be derived from tokens, or a declared size is not that of ``tokens``.
    """
    return _complete(inputs, {TOKENS: tokens}, "text", past)


def from_npz(inputs: Sequence[Input], path: Path) -> Iterator[Feed]:
    """Yield feeds from arrays named like the model's inputs.

    An array of an input's own rank is cut along its first axis into samples of batch 1 (or of the declared batch size);
    an array of one rank more holds one feed per index. Where ``input_ids`` is given, the inputs that follow from it may
    be left out.

    Raises:
        CalibrationError: the file is missing or damaged; a name, dtype or shape does not fit the model.
    """
    arrays = _read_npz(path)
    known = {i.name: i for i in inputs}
    for name in arrays:
        if name not in known:
            raise CalibrationError(f"{path}: array '{name}' is no input of the model{nearest(name, known)}")
    samples = {name: _samples(known[name], array, path) for name, array in arrays.items()}
    counts = {name: len(s) for name, s in samples.items()}
    number = min(counts.values(), default=0)
    if number == 0:
        raise CalibrationError(f"{path} holds no samples")
    if len(set(counts.values())) > 1:
        shown = ", ".join(f"'{n}' {c}" for n, c in counts.items())
        raise CalibrationError(f"{path}: arrays hold different numbers of samples ({shown}); give all the same")
    return (_complete(inputs, {name: s[i] for name, s in samples.items()}, str(path)) for i in range(number))


def random(inputs: Sequence[Input], *, samples: int, length: int, seed: int) -> Iterator[Feed]:
    """Yield seeded random feeds: uniform token ids, or normal floats with outlier channels.

    Args:
        inputs: what the model declares.
        samples: number of feeds of batch 1.
        length: size given to every free dimension but the first.
        seed: of the generator.

    Raises:
        CalibrationError: an integer input has no known range.
    """
    rng = np.random.default_rng(seed)
    for _ in range(samples):
        given = {}
        for item in inputs:
            shape = [d if isinstance(d, int) else 1 if axis == 0 else length for axis, d in enumerate(item.shape)]
            if item.vocabulary is not None:
                given[item.name] = rng.integers(0, item.vocabulary, shape)
            elif np.issubdtype(item.dtype, np.integer) or item.dtype == bool or item.role or _PAST.search(item.name):
                continue
            else:
                given[item.name] = _with_outliers(rng, shape)
        yield _complete(inputs, given, "random data")


def _with_outliers(rng: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
    x = rng.standard_normal(shape, np.float32)
    if x.ndim:
        x[..., ::_OUTLIER_EVERY] *= np.float32(_OUTLIER_SCALE)
    return x


def _complete(inputs: Sequence[Input], given: Mapping[str, np.ndarray], source: str, past: int = 0) -> Feed:
    """Return ``given`` with the inputs that follow from the token ids, all of the declared dtypes and shapes."""
    names = {i.name for i in inputs}
    if TOKENS in given and TOKENS not in names:
        raise CalibrationError(
            f"{source} needs an input '{TOKENS}', which the model lacks{nearest(TOKENS, names)}; use --data"
        )
    feed = {}
    for item in inputs:
        array = given[item.name] if item.name in given else _derived(item, given, source, past)
        feed[item.name] = _checked(item, np.asarray(array), source)
    return feed


def _derived(item: Input, given: Mapping[str, np.ndarray], source: str, past: int) -> np.ndarray:
    """The value of an input that was not given, from the token ids (B, S), those before them and, if given, the mask.

    A cache that is updated in place is as long as the chunk, where it may be: so its rows can be compared with those of
    one that grows. One of codes cannot, and its format may want whole pages.
    """
    hint = f"{source} gives no value for input '{item.name}'; give one in an .npz with --data"
    if TOKENS not in given:
        raise CalibrationError(hint)
    tokens = given[TOKENS]
    batch, length = tokens.shape
    if item.role == "start":
        return np.full(batch, past, np.int32)
    if item.role == "cache":
        rows = kv_cache.rows_for(length) if item.dtype == np.int8 else length
        sizes = (d if isinstance(d, int) else rows if axis == 2 else batch for axis, d in enumerate(item.shape))
        return np.zeros(tuple(sizes), item.dtype)
    all_ones = np.ones((batch, past + length), np.int64)
    if item.name == "attention_mask" and len(item.shape) == 2:
        return all_ones
    if item.name == "position_ids" and len(item.shape) == 2:
        # Left padding has position 0, as in transformers.
        mask = given.get("attention_mask", all_ones)
        positions: np.ndarray = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
        return positions[:, -length:]
    if item.name == "token_type_ids":
        return np.zeros(tokens.shape, np.int64)
    if _PAST.search(item.name) and len(item.shape) >= 3:
        sizes_of_cache = [d if isinstance(d, int) else 0 for d in item.shape[1:]]
        if 0 in sizes_of_cache:
            return np.zeros([batch, *sizes_of_cache], item.dtype)
    raise CalibrationError(hint)


def _checked(item: Input, array: np.ndarray, source: str) -> np.ndarray:
    declared_shape = ", ".join("?" if d is None else str(d) for d in item.shape)
    fits = len(item.shape) == array.ndim and all(
        not isinstance(d, int) or d == n for d, n in zip(item.shape, array.shape, strict=True)
    )
    if not fits:
        raise CalibrationError(
            f"{source}: input '{item.name}' got shape {list(array.shape)}, but the model declares [{declared_shape}]"
        )
    if not np.can_cast(array.dtype, item.dtype, "same_kind"):
        raise CalibrationError(f"{source}: input '{item.name}' got {array.dtype}, but the model declares {item.dtype}")
    if item.vocabulary is not None and array.size and not 0 <= array.min() <= array.max() < item.vocabulary:
        raise CalibrationError(
            f"{source}: input '{item.name}' holds ids from {array.min()} to {array.max()}, but the model's table has "
            f"{item.vocabulary} rows; was the text cut by another model's tokenizer?"
        )
    return np.asarray(array, item.dtype, order="C")


def _samples(item: Input, array: np.ndarray, path: Path) -> list[np.ndarray]:
    """Cut one array of the file into the values of successive feeds."""
    rank = len(item.shape)
    if array.ndim == rank + 1:
        return list(array)
    if array.ndim != rank or rank == 0:
        raise CalibrationError(
            f"{path}: array '{item.name}' has rank {array.ndim}; the input's is {rank}, so give {rank} or {rank + 1}"
        )
    batch = item.shape[0] if isinstance(item.shape[0], int) else 1
    if batch == 0 or len(array) % batch:
        raise CalibrationError(
            f"{path}: array '{item.name}' has {len(array)} rows, not a multiple of the batch size {batch}"
        )
    return [array[i : i + batch] for i in range(0, len(array), batch)]


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        file = np.load(path, allow_pickle=False)
        if isinstance(file, np.ndarray):
            raise CalibrationError(f"{path} is a single array; save arrays by input name with numpy.savez")
        with file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError as e:
        raise CalibrationError(f"data file {path} does not exist") from e
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, AttributeError, TypeError) as e:
        raise CalibrationError(f"{path} is not an .npz of plain arrays, or it is truncated") from e


def _vocabulary(tensor: gs.Tensor) -> int | None:
    """Rows of the table that the ids ``tensor`` index, looked for behind casts and reshapes; None if there is none."""
    if not tensor.name.endswith(TOKENS):
        return None
    seen, queue = {tensor.name}, [tensor]
    while queue:
        current = queue.pop(0)
        for node in query.consumers(current):
            if query.is_op(node, "Gather") and node.inputs[1] is current and isinstance(node.inputs[0], gs.Constant):
                return int(node.inputs[0].shape[node.attrs.get("axis", 0)])
            if query.is_op(node, "EmbedLayerNormalization", domain="com.microsoft") and node.inputs[0] is current:
                return int(node.inputs[2].shape[0])
            if query.is_op(node, "GatherBlockQuantized", domain="com.microsoft") and node.inputs[1] is current:
                return int(node.inputs[0].shape[node.attrs.get("gather_axis", 0)])
            if query.is_op(node, "Cast", "Reshape", "Unsqueeze", "Squeeze", "Identity") and node.inputs[0] is current:
                queue += [t for t in node.outputs if t.name not in seen]
                seen |= {t.name for t in node.outputs}
    return None
