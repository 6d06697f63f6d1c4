"""What verbs print that read and write ONNX files."""

__all__ = [
    "Calibrate", "Compare", "Estimate", "EvalPpl", "Explain", "Inspect", "InspectText", "Model", "Optimize",
]  # fmt: skip

from typing import Any, Literal

from graphopt.cli.shapes.base import Shape, of


class Sizes(Shape):
    """How large a model is."""

    nodes: int = of("nodes of the main graph")
    plugin_nodes: int = of("those that become plugin layers")
    weight_bytes: int = of("bytes of all constants")


class Linears(Shape):
    """What became of the linears."""

    lowered: int = of("went through a scheme")
    left: int = of("products with a weight that did not")


class Finding(Shape):
    """What a rule did to a node, or decided not to do."""

    stage: str = of("stage of the compiler")
    rule: str = of("name of the rule, or of the stage")
    node: str = of("name of the node")
    status: Literal["rewritten", "skipped", "note"] = of("what became of it")
    reason: str = of("what came out, or why not")
    detail: dict[str, Any] = of("numbers that depend on the rule: outliers, bytes_before, weight_error, ...")


class Optimize(Shape):
    """graphopt optimize"""

    files: list[str] = of("written; none by --dry-run")
    before: Sizes = of("of the model as it was")
    after: Sizes = of("of the model that was written")
    linears: Linears = of("how many were quantized")
    findings: list[Finding] = of("in the order in which they were made")
    seconds: dict[str, float] = of("by stage")


class Calibrate(Shape):
    """graphopt calibrate"""

    file: str = of("the statistics")
    linears: int = of("inputs measured")
    attentions: int = of("layers whose keys and values were kept")
    tokens: int = of("seen by the linear that saw most")
    source: dict[str, Any] = of("what was run through the model: kind, samples, length, seed, model, ...")
    seconds: float = of("all of it")


class Tensor(Shape):
    """An input or output of a model."""

    name: str = of("its name")
    dtype: str = of("element type")
    shape: list[int | str | None] = of("sizes, or names of dynamic ones")


class LinearRow(Shape):
    """A linear, by the name that recipes use."""

    name: str = of("of the node")
    op: str = of("canonical or quantized op")
    weight: str = of("name of the weight or of its codes")


class Inspect(Shape):
    """graphopt inspect MODEL.onnx"""

    opset: int = of("of the standard operators")
    nodes: int = of("of the main graph")
    plugin_nodes: int = of("those that become plugin layers")
    weight_bytes: int = of("bytes of all constants")
    inputs: list[Tensor] = of("in order")
    outputs: list[Tensor] = of("in order")
    ops: dict[str, int] = of("nodes by operator, the most frequent first")
    linears: list[LinearRow] = of("in graph order")


class InspectText(Shape):
    """graphopt inspect MODEL.onnx --text"""

    text: str = of("the graph, a line for each node")


class Device(Shape):
    """A GPU, as its kernels see it."""

    name: str = of("as --device has it")
    multiprocessors: int = of("of the GPU")
    compute_capability: int = of("such as 90")
    megahertz: int = of("clock")
    shared_bytes: int = of("shared memory of a block")
    bytes_per_us: float = of("bandwidth of memory")


class Switches(Shape):
    """Optimizations that the estimate has."""

    cache: bool = of("codebook cache")
    dataflow: bool = of("codebook-centric dataflow")
    fusion: bool = of("hierarchical fusion")


class VqPlan(Shape):
    """Why a kernel runs for a number of tokens."""

    m: int = of("tokens")
    kernel: str = of("chosen")
    reason: str = of("why it is that one")
    split: int = of("blocks that share K")
    us: float | None = of("estimated microseconds; null where no estimate knows the kernel")
    candidates: dict[str, float] = of("estimated microseconds by kernel")
    traffic: dict[str, float] = of("bytes read and written by multiprocessors")
    memory_us: float = of("least microseconds for that traffic")
    paper_split: float = of("split by VQ-LLM's rule")
    shuffles: int = of("that would rearrange an entry for mma.sync")
    cache: dict[str, float] = of("entries in shared memory and what they serve; empty where there are none")
    paper_fusion: str = of("where VQ-LLM's rule would rearrange entries")
    us_without: dict[str, float | None] = of("estimated microseconds without an optimization, and without all")


class VqLinear(Shape):
    """A vector-quantized linear."""

    name: str = of("of the node")
    n: int = of("output channels")
    k: int = of("input channels")
    dtype: str = of("of activations")
    format: str = of("VQ<v,b,r>")
    tile: list[int] = of("rows and columns that share codebooks")
    transform: str = of("op that makes its input; empty without one")
    readers: int = of("linears that share that input")
    code_bytes: int = of("of all codes")
    codebooks: int = of("how many")
    codebook_bytes: int = of("of one of them")
    usage: dict[str, int] = of("codes counted, entries, those never named, and how many cover a share of codes")
    plans: list[VqPlan] = of("one for each --tokens")


class VqCache(Shape):
    """A key-value cache in codes."""

    name: str = of("of the attention node")
    heads: int = of("of queries")
    kv_heads: int = of("of keys and values")
    head_size: int = of("channels of a head")
    vector: int = of("channels that share a code")
    element_bytes: int = of("of an activation")
    format: str = of("VQ<v,b,r>")
    token_bytes: int = of("of a token in codes")
    plain_token_bytes: int = of("of a token without")
    codebook_bytes: int = of("of the layer")
    break_even: int = of("tokens from which on codes and codebooks are smaller")


class Explain(Shape):
    """graphopt explain"""

    device: Device = of("that the estimate is for")
    switches: Switches = of("as asked for")
    linears: list[VqLinear] = of("in graph order")
    caches: list[VqCache] = of("in graph order")


class Difference(Shape):
    """How far a value is from the reference's; null for a number that is not finite."""

    name: str = of("of the value")
    max_abs: float | None = of("max |a - b|")
    rms: float | None = of("root mean square of a - b")
    normalized: float | None = of("||a - b|| / ||b||")
    cosine: float | None = of("of the angle between a and b")
    excess: float | None = of("max of |a - b| - (atol + rtol |b|)")
    reason: str | None = of("why they cannot be compared at all")
    passed: bool = of("within the tolerance")


class LayerDifference(Difference):
    """The same of a layer's output."""

    layer: str = of("name that recipes use")


class Culprit(Shape):
    """The first layer beyond the tolerance."""

    layer: str = of("its name")
    value: str = of("its output")
    cause: str = of("why it probably differs")


class Comparison(Shape):
    """A model beside the reference."""

    model: str = of("its file")
    passed: bool = of("every output is there and within the tolerance")
    samples: int = of("inputs run")
    missing: list[str] = of("outputs that it lacks")
    other_form: list[str] = of("outputs that hold the cache in another format, and are not compared")
    outputs: list[Difference] = of("in the reference's order")
    layers: list[LayerDifference] = of("with --per-layer, in graph order")
    uncompared: list[str] = of("layers that it does not have under a name, such as merged ones")
    culprit: Culprit | None = of("null where no layer differs")


class Compare(Shape):
    """graphopt compare"""

    passed: bool = of("all of them; else the exit code is 1")
    reference: str = of("the last file given")
    comparisons: list[Comparison] = of("of the others, in order")


class EvalPpl(Shape):
    """graphopt eval ppl"""

    scheme: str = of("how the weights are quantized; fp if they are not")
    kv: str = of("how the cache is; none if it keeps the activation type")
    bits_per_weight: float | None = of("of the linears, codebooks and scales included")
    ppl: float = of("perplexity")
    ppl_fp32: float | None = of("of --reference")
    kl: float | None = of("mean KL divergence from --reference, in nats")
    top1_agreement: float | None = of("share of tokens for which both say the same next one")
    tokens: int = of("scored: of each chunk all but the first")
    chunks: int = of("of text")
    commit: str = of("of graphopt's sources, or its version")
    date: str = of("UTC")
    chunk_nll: list[float] = of("mean negative log likelihood of each chunk")
    seconds: float = of("all of it")
    runner: str = of("what computed")


class Traffic(Shape):
    """Bits to and from memory."""

    weights: float = of("codes, types and scales")
    activations: float = of("inputs")
    outputs: float = of("results")
    cache: float = of("keys and values")


class ArrayCost(Shape):
    """What linears or attention cost on an array."""

    cycles: float = of("with memory")
    compute: float = of("cycles without")
    macs: int = of("multiplications")
    dram: Traffic = of("by what is moved")
    pes: float = of("energy of processing elements in picojoules")
    buffers: float = of("energy of buffers in picojoules")
    quantizer: float = of("energy of the quantizer in picojoules")


class Phase(Shape):
    """Prefill or decoding on one array."""

    array: str = of("int8, ant, olive or mant")
    phase: str = of("prefill or decode")
    pes: int = of("processing elements")
    linears: ArrayCost = of("of all layers")
    attention: ArrayCost = of("of all layers")
    bound: Literal["compute", "memory"] = of("what takes longer")
    seconds: float = of("of the phase")
    energy: dict[str, float] = of("joules by part")
    joules: float = of("all parts")
    mant_speedup: float = of("how many times faster M-ANT's array is")
    mant_energy_reduction: float = of("how many times less energy it takes")


class Estimate(Shape):
    """graphopt estimate"""

    batch: int = of("sequences")
    seq: int = of("tokens of a prompt")
    context: int = of("tokens in the cache")
    equal: str = of("what the arrays have in common: area or pes")
    phases: list[Phase] = of("each phase on each array")


class WrittenFile(Shape):
    """A file that was written."""

    path: str = of("where")
    bytes: int = of("its size")


class Model(Shape):
    """What `graphopt model llama` and the other verbs of model print"""

    files: list[WrittenFile] = of("written")
    config: dict[str, Any] = of("of the model, as Hugging Face writes it")
