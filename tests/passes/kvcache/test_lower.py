"""optimize --kv-cache static: the same logits as the concatenating model, call by call, and what is refused and why."""

from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from graphopt import compile, ir
from graphopt.core.canonical import linears
from graphopt.core.recipe import Recipe
from graphopt.ir import kv_cache, text
from graphopt.passes import CACHES, SCHEMES
from tests.contract.test_ops import assert_close
from tests.passes.kvcache.decoders import CONFIG, EXPORTERS, Decoder, built, optimized, outcome
from tests.support.runtime import run_ort

#: Logits of two layers: float16 rounds scores and probabilities of the concatenating model, which the op does not.
TOLERANCE = {"float32": 1e-6, "float16": 2**-8}
EXPORTED = [
    "llama_dynamo18_kv", "llama_dynamo18_kv_fp16", "llama_dynamo23_kv", "llama_genai_fp16", "llama_genai_fp32",
    "llama_genai_int4", "llama_genai_int4_tied", "llama_genai_mha", "llama_torchscript17_kv", "qwen2_genai_fp32",
    "qwen3_dynamo18_kv",
]  # fmt: skip
REWRITTEN = ("rewritten", "a causal attention_mask (padding on the {}) is replaced by start")


def pair(
    source: ir.Model, other: ir.Model, tmp_path: Path, batch: int, scheme: str = "none"
) -> tuple[Decoder, Decoder]:
    """Two copies of a model, optimized without and with a static cache."""
    optimized(source, None, scheme)
    optimized(other, "static", scheme)
    concat, static = tmp_path / "concat.onnx", tmp_path / "static.onnx"
    return Decoder(concat, source, run_ort, batch), Decoder(static, other, run_ort, batch)


def assert_same_steps(concat: Decoder, static: Decoder, lengths: list[int], vocab: int, tolerance: float) -> None:
    rng = np.random.default_rng(8)
    for number, seq in enumerate(lengths):
        tokens = rng.integers(0, vocab, (len(static.start), seq))
        want, got = concat.step(tokens), static.step(tokens)
        assert np.isfinite(got).all()
        assert_close(got, want, tolerance, f"call {number}")
        rows = int(static.start[0])
        for name, grown in concat.state.items():
            kept = static.state[name][:, :, :rows]
            assert_close(kept.reshape(-1, kept.shape[-1]), grown.reshape(-1, kept.shape[-1]), tolerance, name)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_built_decoder_step_by_step(dtype: str, tmp_path: Path) -> None:
    decoders = pair(built(dtype), built(dtype), tmp_path, batch=2)
    assert_same_steps(*decoders, [5, 1, 1, 3, 1], CONFIG.vocab_size, TOLERANCE[dtype])


@pytest.mark.parametrize("name", EXPORTED)
def test_exported_decoders_step_by_step(name: str, tmp_path: Path) -> None:
    path = EXPORTERS / f"{name}.onnx"
    decoders = pair(ir.load(path), ir.load(path), tmp_path, batch=2)
    # The mask of this export knows prompts and single tokens only.
    lengths = [5, 1, 1, 1] if name.endswith("mha") else [5, 1, 1, 3, 1]
    tolerance = TOLERANCE["float16" if name.endswith(("fp16", "mha")) else "float32"]
    assert_same_steps(*decoders, lengths, 72, tolerance)


def test_bfloat16_is_lowered_too() -> None:
    for model in (built("bfloat16"), ir.load(EXPORTERS / "llama_dynamo18_kv.onnx")):
        assert outcome(optimized(model)) == [(REWRITTEN[0], REWRITTEN[1].format("left"))] * 2


@pytest.mark.parametrize("name", ["built", "llama_dynamo18_kv", "llama_genai_fp32"])
def test_prompts_of_different_lengths_in_one_batch(name: str, tmp_path: Path) -> None:
    """Right-padded prompts, then each sequence goes on at its own place; each alone gives the same logits."""

    def source() -> ir.Model:
        return built() if name == "built" else ir.load(EXPORTERS / f"{name}.onnx")

    lengths, steps = [5, 2], 3
    rng = np.random.default_rng(4)
    prompt, later = rng.integers(0, 72, (2, 5)), rng.integers(0, 72, (2, steps))
    _, together = pair(source(), source(), tmp_path, batch=2)
    first = together.step(prompt, lengths)
    rest = [together.step(later[:, i : i + 1]) for i in range(steps)]
    for b, length in enumerate(lengths):
        alone, _ = pair(source(), source(), tmp_path, batch=1)
        assert_close(first[b, :length], alone.step(prompt[b : b + 1, :length])[0], TOLERANCE["float32"], "prompt")
        for i in range(steps):
            want = alone.step(later[b : b + 1, i : i + 1])
            assert_close(rest[i][b], want[0], TOLERANCE["float32"], f"sequence {b}, token {i}")


def test_what_runtimes_are_told_and_given(tmp_path: Path) -> None:
    model = built()
    optimized(model, capacity=32)
    ir.save(model, tmp_path / "m.onnx")
    proto = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    onnx.checker.check_model(str(tmp_path / "m.onnx"), full_check=True)
    inputs = {i.name: [d.dim_param or d.dim_value for d in i.type.tensor_type.shape.dim] for i in proto.graph.input}
    parts = [f"{i}.{part}" for i in range(2) for part in ("key", "value")]
    assert inputs == {
        "input_ids": ["batch_size", "sequence_length"],
        **{f"past_key_values.{part}": ["batch_size", 2, 32, 16] for part in parts},
        "start": ["batch_size"],
    }
    cache = kv_cache.read(proto.metadata_props)
    assert cache == kv_cache.KvCache(
        "static", "start", 32, 32.0, tuple((f"past_key_values.{part}", f"present.{part}") for part in parts)
    )
    ops = [n.op_type for n in proto.graph.node]
    assert ops.count("CachedAttention") == 2
    assert not {"Transpose", "Softmax", "Trilu"} & set(ops)


def test_with_mixq_linears_keep_their_names_and_results(tmp_path: Path) -> None:
    source, other = built(), built()
    names = [linear.name for linear in canonical_linears()]
    concat, static = pair(source, other, tmp_path, batch=2, scheme="mixq-w8a8")
    for model in (source, other):
        ours = [part for n in model.graph.nodes if n.op.startswith("MixQLinear") for part in n.name.split(" + ")]
        assert ours == names
    (o_proj,) = (n for n in other.graph.nodes if n.name == "/model/layers.0/self_attn/o_proj/MatMul")
    quantize = o_proj.inputs[0].inputs[0]
    reshape = quantize.inputs[0].inputs[0]
    assert [quantize.op.startswith("MixQQuantize"), reshape.op, reshape.inputs[0].inputs[0].op] == [
        True, "Reshape", "CachedAttention",
    ]  # fmt: skip
    # A code on a rounding boundary may fall to either side: one step of 127 of a row.
    assert_same_steps(concat, static, [5, 1, 1], CONFIG.vocab_size, 1e-2)


def canonical_linears() -> list:
    model = built()
    compile.canonicalize(model)
    return linears(model)


def test_dry_run_reports_and_changes_nothing() -> None:
    model, untouched = (ir.load(EXPORTERS / "llama_dynamo18_kv.onnx") for _ in range(2))
    recipe = Recipe.preset("none", SCHEMES)
    compile.optimize(untouched, recipe, dry_run=True)
    report = compile.optimize(model, recipe.with_cache("static", {}, CACHES), dry_run=True)
    assert [status for status, _ in outcome(report)] == ["rewritten"] * 2
    assert text.dump(model) == text.dump(untouched)
    assert kv_cache.read(model.shell.metadata_props) is None


def refused(model: ir.Model) -> set[str]:
    """The reasons for which ``model`` is left alone; it must be what it is without the flag."""
    other = ir.Model(model.graph.copy())
    reasons = outcome(optimized(model))
    optimized(other, None)
    assert {status for status, _ in reasons} == {"skipped"}
    assert [t.name for t in model.graph.inputs] == [t.name for t in other.graph.inputs]
    assert not any(n.op == "CachedAttention" for n in model.graph.nodes)
    assert kv_cache.read(model.shell.metadata_props) is None
    return {reason for _, reason in reasons}


def insert(model: ir.Model, after: str, op: str, other: gs.Tensor, **attrs: int) -> None:
    """Put ``op``(tensor, other) between the tensor ``after`` and its readers."""
    tensor = model.graph.tensors()[after]
    new = gs.Variable(f"{after}/{op}", tensor.dtype, tensor.shape)
    readers = list(tensor.outputs)
    model.graph.nodes.append(gs.Node(op, f"{after}/{op}_node", attrs, [tensor, other], [new]))
    for reader in readers:
        reader.inputs = [new if t is tensor else t for t in reader.inputs]
    model.tidy()


@pytest.mark.parametrize("name", ["llama_dynamo18", "mistral_dynamo18_kv"])
def test_models_without_a_cache_that_grows_say_so(name: str) -> None:
    """Mistral cuts its cache to the sliding window."""
    assert refused(ir.load(EXPORTERS / f"{name}.onnx")) == {"no attention reads past and new keys, concatenated"}


@pytest.mark.parametrize(
    ("preset", "cache", "reason"),
    [
        ("none", "static", "its cache is updated in place already, in format 'static'; optimize the file"),
        (
            "mixq-w8a8",
            None,
            "concatenated; it went through 'mixq-w8a8' before: optimize the file that it was made from",
        ),
    ],
)
def test_files_that_were_optimized_before_say_so(preset: str, cache: str | None, reason: str, tmp_path: Path) -> None:
    model, recipe = ir.load(EXPORTERS / "llama_dynamo18_kv.onnx"), Recipe.preset(preset, SCHEMES)
    compile.optimize(model, recipe if cache is None else recipe.with_cache(cache, {}, CACHES))
    ir.save(model, tmp_path / "model.onnx")
    again = compile.optimize(
        ir.load(tmp_path / "model.onnx"), Recipe.preset("none", SCHEMES).with_cache("static", {}, CACHES)
    )
    ((status, said),) = outcome(again)
    assert status == "skipped" and reason in said


def test_sliding_windows_are_refused() -> None:
    model = ir.load(EXPORTERS / "llama_genai_fp32.onnx")
    for node in model.graph.nodes:
        if node.op == "GroupQueryAttention":
            node.attrs["local_window_size"] = 100
    (reason,) = refused(model)
    assert reason == "the mask hides earlier tokens, as a sliding window does (1 new tokens after 65536)"


def test_biased_scores_are_refused() -> None:
    model = built()
    insert(model, "/model/mask/Where_output_0", "Add", gs.Constant("slope", np.full((1, 6, 1, 1), 0.5, np.float32)))
    (reason,) = refused(model)
    assert reason.startswith("the mask adds a bias to the scores, as ALiBi does")


def test_encoders_of_a_cache_that_see_later_tokens_are_refused() -> None:
    model = built()
    always = gs.Constant("always", np.ones((1, 1), bool))
    insert(model, "/model/mask/LessOrEqual_output_0", "Or", always)
    (reason,) = refused(model)
    assert reason.startswith("the mask lets tokens see later ones")


def test_masks_that_depend_on_activations_are_refused() -> None:
    model = built()
    hidden = model.graph.tensors()["/model/layers.0/Add_output_0"]
    shape = gs.Constant("one", np.array([-1], np.int64))
    layer = next(n for n in model.graph.nodes if n.name == "/model/layers.1/self_attn/Add")
    old = layer.inputs[1]
    flat, least, zero = (
        gs.Variable(n, np.float32, shape) for n, shape in (("flat", [None]), ("least", []), ("zero", []))
    )
    mixed = gs.Variable("mixed_mask", np.float32, ["batch_size", 1, "sequence_length", "total_sequence_length"])
    model.graph.nodes += [
        gs.Node("Reshape", "flatten", {}, [hidden, shape], [flat]),
        gs.Node("ReduceMin", "least_node", {"keepdims": 0}, [flat], [least]),
        gs.Node("Sub", "zero_node", {}, [least, least], [zero]),
        gs.Node("Add", "mix", {}, [old, zero], [mixed]),
    ]
    layer.inputs[1] = mixed
    model.tidy()
    (reason,) = refused(model)
    assert reason.startswith("it depends on")


def test_masks_that_depend_on_the_tokens_are_refused() -> None:
    """Padding that is found by its id, which no probe happens to hold."""
    model = built()
    ids = model.graph.tensors()["input_ids"]
    five, axes = gs.Constant("five", np.array(5)), gs.Constant("axes", np.array([1, 2]))
    is_five, real = (gs.Variable(name, bool, ids.shape) for name in ("is_five", "real"))
    keys = gs.Variable("real_keys", bool, [ids.shape[0], 1, 1, ids.shape[1]])
    model.graph.nodes += [
        gs.Node("Equal", "find", {}, [ids, five], [is_five]),
        gs.Node("Not", "keep", {}, [is_five], [real]),
        gs.Node("Unsqueeze", "widen", {}, [real, axes], [keys]),
    ]
    insert(model, "/model/mask/LessOrEqual_output_0", "And", keys)
    model.tidy()
    (reason,) = refused(model)
    assert reason == "it depends on which tokens 'input_ids' holds"


def test_a_layer_that_is_not_understood_keeps_all_as_they_are() -> None:
    """Layer 1 without a softmax that canonicalization knows: its cache is read by a node that stays."""
    model = built()
    insert(model, "/model/layers.1/self_attn/Softmax_output_0", "Pow", gs.Constant("squared", np.float32([2])))
    (reason,) = refused(model)
    assert reason.startswith("input 'past_key_values.1.") and "(Concat), not only by attention" in reason


def test_other_readers_of_the_mask_are_named() -> None:
    model = built()
    mask = model.graph.tensors()["attention_mask"]
    count = gs.Variable("tokens_seen", np.int64, ["batch_size"])
    axes = gs.Constant("last", np.array([1], np.int64))
    model.graph.nodes.append(gs.Node("ReduceSum", "count", {"keepdims": 0}, [mask, axes], [count]))
    model.graph.outputs.append(count)
    (reason,) = refused(model)
    assert reason == "input 'attention_mask' is read by node 'count' (ReduceSum), not only by attention"


def reads_size(model: ir.Model, op: str, of_shape: dict[str, int], *operands: list[int]) -> gs.Variable:
    """Let the model give what ``op`` takes of the shape of a cache; return that output."""
    past = model.graph.tensors()["past_key_values.0.key"]
    shape, size = gs.Variable("cache_shape", np.int64), gs.Variable("cache_size", np.int64, [None])
    constants = [gs.Constant(f"operand{i}", np.array(values, np.int64)) for i, values in enumerate(operands)]
    model.graph.nodes += [
        gs.Node("Shape", "shape_node", of_shape, [past], [shape]),
        gs.Node(op, "size_node", {}, [shape, *constants], [size]),
    ]
    model.graph.outputs.append(size)
    return size


@pytest.mark.parametrize(
    ("op", "of_shape", "operands"),
    [
        ("Gather", {}, [[0]]),
        ("Slice", {}, [[0], [1]]),
        ("Slice", {}, [[0], [1], [0], [1]]),
        ("Gather", {"start": 0, "end": 1}, [[0]]),
        ("Neg", {"end": 1}, []),
    ],
)
def test_the_batch_size_is_read_from_the_tokens(op: str, of_shape: dict[str, int], operands: list[list[int]]) -> None:
    model = built()
    size = reads_size(model, op, of_shape, *operands)
    assert {status for status, _ in outcome(optimized(model))} == {"rewritten"}
    shape = size.inputs[0].inputs[0].inputs[0]
    assert (shape.op, shape.inputs[0].name, dict(shape.attrs)) == ("Shape", "input_ids", of_shape)


@pytest.mark.parametrize(
    ("op", "of_shape", "operands"),
    [
        ("Gather", {}, [[2]]),
        ("Gather", {}, [[0, 2]]),
        ("Slice", {}, [[0], [3]]),
        ("Slice", {}, [[2], [3]]),
        ("Slice", {}, [[0], [1], [0], [2]]),
        ("Gather", {"start": 2}, [[0]]),
        ("Neg", {"start": 2, "end": 3}, []),
        ("Neg", {"start": 0}, []),
        ("Neg", {"end": 3}, []),
    ],
)
def test_other_sizes_of_a_cache_are_nobody_elses(op: str, of_shape: dict[str, int], operands: list[list[int]]) -> None:
    """Its rows are no longer the tokens of the past."""
    model = built()
    reads_size(model, op, of_shape, *operands)
    (reason,) = refused(model)
    assert reason == "input 'past_key_values.0.key' is read by node 'shape_node' (Shape), not only by attention"


def test_positions_of_keys_are_not_those_of_queries() -> None:
    """They look alike until there is a past."""
    model = ir.load(EXPORTERS / "llama_dynamo18_kv.onnx")
    model.graph.outputs.append(model.graph.tensors()["bitwise_and"])
    assert not any("broadcast" in reason for reason in refused(model))


def test_positions_that_leave_the_model_are_named() -> None:
    """Computed from start, they would have another shape."""
    model = ir.load(EXPORTERS / "llama_torchscript17_kv.onnx")
    model.graph.outputs.append(model.graph.tensors()["/model/model/Unsqueeze_output_0"])
    (reason,) = refused(model)
    assert reason == "positions '/model/model/Unsqueeze_output_0' are an output of the model"


def test_positions_without_a_batch_are_for_rotary_tables_alone() -> None:
    """What a vector of positions is replaced by has a batch: for a learned embedding of positions nothing shows that it
    may have one."""
    model = ir.load(EXPORTERS / "llama_torchscript17_kv.onnx")
    positions, vector = model.graph.tensors()["/model/model/Unsqueeze_output_0"], gs.Variable("vector", np.int64, ["s"])
    first = gs.Constant("first", np.zeros(1, np.int64))
    model.graph.nodes.append(gs.Node("Squeeze", "squeeze", inputs=[positions, first], outputs=[vector]))
    hidden, head = next(n.inputs for n in model.graph.nodes if n.outputs[0].name == "logits")
    table = gs.Constant("wpe", np.ones((8, head.shape[0]), np.float32))
    looked_up = gs.Variable("positions_embedded", np.float32, ["sequence", table.shape[1]])
    model.graph.nodes.append(gs.Node("Gather", "wpe_gather", {"axis": 0}, [table, vector], [looked_up]))
    insert(model, hidden.name, "Add", looked_up)
    (reason,) = refused(model)
    assert reason == f"positions '{vector.name}' of rank 1 are read for something else than rotary tables"


def test_other_readers_of_the_cache_are_named() -> None:
    model = built()
    past = model.graph.tensors()["past_key_values.0.key"]
    out = gs.Variable("doubled", np.float32, past.shape)
    model.graph.nodes.append(gs.Node("Add", "double", {}, [past, past], [out]))
    model.graph.outputs.append(out)
    assert refused(model) == {
        "'past_key_values.0.key' is read by node 'double' (Add) too",
        "another layer cannot change, and all share their inputs",
    }
