"""AQLM checkpoints: decoded weights, the archive of codes, and the model that takes the codes over exactly."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphopt import compile, ir
from graphopt.core.canonical import linears
from graphopt.core.recipe import Recipe
from graphopt.errors import ModelError
from graphopt.models.aqlm import ARCHIVE, AqlmWeights, is_aqlm
from graphopt.models.folder import write_folder
from graphopt.models.llama_config import LlamaConfig
from graphopt.models.weights import RandomWeights
from graphopt.passes import SCHEMES
from tests.support.runtime import run_ort

Write = Callable[[Path, dict[str, np.ndarray]], None]
V = 8


def decoded(arrays: dict[str, np.ndarray], stem: str) -> np.ndarray:
    """The weight, vector by vector as the paper writes it."""
    codes, books, scales = (arrays[f"{stem}.{part}"] for part in ("codes", "codebooks", "scales"))
    kind = np.uint8 if codes.dtype == np.int8 else np.uint16
    unsigned = codes.view(kind).astype(int)
    weight = np.zeros((codes.shape[0], codes.shape[1], V), np.float32)
    for n, j, i in np.ndindex(*codes.shape):
        weight[n, j] += books[i, unsigned[n, j, i], 0].astype(np.float32)
    return weight.reshape(len(codes), -1) * scales.reshape(-1, 1).astype(np.float32)


def checkpoint(folder: Path, config: LlamaConfig, write: Write, bits: int, residuals: int) -> dict[str, np.ndarray]:
    """Write a checkpoint whose decoder linears are quantized; return its arrays."""
    rng, source = np.random.default_rng(bits), RandomWeights(config)
    arrays: dict[str, np.ndarray] = {}
    for name, shape in config.weight_shapes().items():
        if "_proj" not in name:
            arrays[name] = source.tensor(name).astype(np.float16)
            continue
        stem, (n, k) = name.removesuffix(".weight"), shape
        kind = np.int8 if bits == 8 else np.int16
        limit = 1 << (bits - 1)
        arrays[f"{stem}.codes"] = rng.integers(-limit, limit, (n, k // V, residuals)).astype(kind)
        arrays[f"{stem}.codebooks"] = (rng.standard_normal((residuals, 1 << bits, 1, V)) * 0.05).astype(np.float16)
        arrays[f"{stem}.scales"] = rng.uniform(0.5, 2, (n, 1, 1, 1)).astype(np.float16)
    quantization = {
        "quant_method": "aqlm", "in_group_size": V, "out_group_size": 1, "num_codebooks": residuals,
        "nbits_per_codebook": bits,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps({**config.to_hf(), "quantization_config": quantization}))
    write(folder / "model.safetensors", arrays)
    return arrays


@pytest.fixture
def small(tiny: LlamaConfig) -> LlamaConfig:
    from dataclasses import replace

    return replace(tiny, hidden_size=64, intermediate_size=96, head_dim=16, num_hidden_layers=1)


@pytest.mark.parametrize(("bits", "residuals"), [(8, 2), (16, 1)])
def test_the_codes_are_taken_over_exactly(
    small: LlamaConfig, write_safetensors: Write, tmp_path: Path, bits: int, residuals: int
) -> None:
    arrays = checkpoint(tmp_path, small, write_safetensors, bits, residuals)
    assert is_aqlm(tmp_path)
    source = AqlmWeights(tmp_path)
    stem = "model.layers.0.mlp.down_proj"
    np.testing.assert_allclose(source.tensor(f"{stem}.weight"), decoded(arrays, stem), rtol=1e-6, atol=1e-7)
    path = write_folder(tmp_path / "out", source)[0]
    source.save_codes(tmp_path / ARCHIVE)
    model = ir.load(path)
    layers = [
        {"match": "*lm_head*", "scheme": "none"},
        {"match": "*", "scheme": "vq", "settings": {"codes": str(tmp_path / ARCHIVE)}},
    ]
    recipe = Recipe.parse({"version": 1, "layers": layers}, SCHEMES, "test")
    planned = compile.optimize(ir.load(path), recipe, dry_run=True)
    report = compile.optimize(model, recipe)
    taken = [f for f in report.findings if f.rule == "vq" and f.status == "rewritten"]
    assert [(f.node, f.reason) for f in planned.findings if f.rule == "vq"] == [(f.node, f.reason) for f in taken]
    assert len(taken) == 7
    assert all("codes of codes.npz" in f.reason for f in taken)
    lowered = ir.save(model, tmp_path / "q.onnx")[0]
    ids = np.random.default_rng(1).integers(0, small.vocab_size, (1, 6))
    empty = np.zeros((1, small.num_key_value_heads, 0, small.head_dim), np.float32)
    feed = {
        "input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": np.arange(6)[None],
        "past_key_values.0.key": empty, "past_key_values.0.value": empty,
    }  # fmt: skip
    for a, b in zip(run_ort(lowered, feed), run_ort(path, feed), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def edited(path: Path, edit: Callable[[dict[str, np.ndarray]], Any]) -> None:
    with np.load(path) as archive:
        arrays = dict(archive)
    edit(arrays)
    np.savez(path, **arrays)


DAMAGE: dict[str, tuple[Callable[[dict[str, np.ndarray], str], Any], str]] = {
    "code": (lambda a, n: a[f"{n}:codes"].__setitem__((3, 1, 0), 256), "code 256 .* beyond the 256 entries"),
    "shape": (lambda a, n: a.update({f"{n}:codes": a[f"{n}:codes"][:-1]}), "do not fit"),
    "vector": (lambda a, n: a.update({f"{n}:codebooks": a[f"{n}:codebooks"][..., :3]}), "have shape"),
    "other": (
        lambda a, n: a.update({f"{n}:scale": a[f"{n}:scale"][::-1]}),
        "of another weight.*set 'arrange' of a cache",
    ),
    "missing": (lambda a, n: a.pop(f"{n}:scale"), "no archive of codes"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_archive_is_refused(small: LlamaConfig, write_safetensors: Write, tmp_path: Path, kind: str) -> None:
    checkpoint(tmp_path, small, write_safetensors, 8, 2)
    source = AqlmWeights(tmp_path)
    path = write_folder(tmp_path / "out", source)[0]
    source.save_codes(tmp_path / ARCHIVE)
    edit, message = DAMAGE[kind]
    edited(tmp_path / ARCHIVE, lambda a: edit(a, "/model/layers.0/self_attn/o_proj/MatMul"))
    layers = [{"match": "*o_proj*", "scheme": "vq", "settings": {"codes": str(tmp_path / ARCHIVE)}}]
    with pytest.raises(ModelError, match=message):
        compile.optimize(ir.load(path), Recipe.parse({"version": 1, "layers": layers}, SCHEMES, "test"))


def test_a_dry_run_takes_no_codes(small: LlamaConfig, write_safetensors: Write, tmp_path: Path) -> None:
    checkpoint(tmp_path, small, write_safetensors, 8, 2)
    source = AqlmWeights(tmp_path)
    model = ir.load(write_folder(tmp_path / "out", source)[0])
    source.save_codes(tmp_path / ARCHIVE)
    layers = [{"match": "*", "scheme": "vq", "settings": {"codes": str(tmp_path / ARCHIVE)}}]
    compile.optimize(model, Recipe.parse({"version": 1, "layers": layers}, SCHEMES, "test"), dry_run=True)
    assert len(linears(model)) == 8


def test_an_archive_of_another_model_is_refused(small: LlamaConfig, write_safetensors: Write, tmp_path: Path) -> None:
    """Its linears have other names; to quantize them all anew is not what was asked for."""
    checkpoint(tmp_path, small, write_safetensors, 8, 2)
    source = AqlmWeights(tmp_path)
    path = write_folder(tmp_path / "out", source)[0]
    source.save_codes(tmp_path / ARCHIVE)

    def rename(arrays: dict[str, np.ndarray]) -> None:
        for name in list(arrays):
            arrays[f"other{name}"] = arrays.pop(name)

    edited(tmp_path / ARCHIVE, rename)
    layers = [{"match": "*o_proj*", "scheme": "vq", "settings": {"codes": str(tmp_path / ARCHIVE)}}]
    with pytest.raises(ModelError, match="codes of none of the linears"):
        compile.optimize(ir.load(path), Recipe.parse({"version": 1, "layers": layers}, SCHEMES, "test"))


def test_a_checkpoint_that_does_not_fit_itself(small: LlamaConfig, write_safetensors: Write, tmp_path: Path) -> None:
    arrays = checkpoint(tmp_path, small, write_safetensors, 8, 2)
    stem = "model.layers.0.mlp.up_proj"
    for part, change, message in (
        ("codes", lambda a: a[:, :, :1], "codes of shape"),
        ("codebooks", lambda a: a.reshape(2, 256, 2, 4), "groups of one output channel"),
        ("codebooks", lambda a: a[:, :200], "beyond its 200 entries"),
        ("scales", lambda a: a[:-1], "95 scales"),
    ):
        damaged = {**arrays, f"{stem}.{part}": np.ascontiguousarray(change(arrays[f"{stem}.{part}"]))}
        write_safetensors(tmp_path / "model.safetensors", damaged)
        with pytest.raises(ModelError, match=message):
            AqlmWeights(tmp_path).tensor(f"{stem}.weight")


def test_other_checkpoints_are_not_aqlm(tmp_path: Path) -> None:
    assert not is_aqlm(tmp_path)
    (tmp_path / "config.json").write_text('{"quantization_config": {"quant_method": "gptq"}}')
    assert not is_aqlm(tmp_path)
