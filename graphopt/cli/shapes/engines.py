"""What verbs print that build, run, time and deploy engines."""

__all__ = [
    "BenchEngine", "BenchKernels", "Build", "DeployCheck", "DeployTensorrtLlm", "DeployTriton", "Doctor", "Generate",
    "InspectPlan", "Run",
]  # fmt: skip

from typing import Literal

from pydantic import ConfigDict

from graphopt.cli.shapes.base import Shape, of


class PlanTensor(Shape):
    """An input or output of a plan."""

    name: str = of("its name")
    dtype: str = of("as TensorRT calls it")
    shape: list[int] = of("sizes; -1 for dynamic ones")


class DataFile(Shape):
    """A file of external data."""

    location: str = of("relative to the model")
    bytes: int = of("its size")


class Source(Shape):
    """The model that a plan was built from."""

    path: str = of("its file")
    sha256: str = of("of the file, without external data")
    external_data: list[DataFile] = of("beside it")
    metadata: dict[str, str] = of("what graphopt wrote into its metadata")


class Plugins(Shape):
    """The plugin library that a plan needs."""

    path: str = of("where it was")
    sha256: str = of("of the file")
    version: str | None = of("its version")
    build_info: str | None = of("architectures and toolkit")


class Range(Shape):
    """Shapes that a profile takes."""

    min: list[int] = of("smallest")
    opt: list[int] = of("usual")
    max: list[int] = of("largest")


class Profile(Shape):
    """An optimization profile."""

    name: str = of("for people")
    ranges: dict[str, Range] = of("by dynamic input")


class Manifest(Shape):
    """A plan's manifest, as in <plan>.json."""

    format: int = of("version of the manifest's format")
    graphopt: str = of("version that built the plan")
    flavour: str = of("rtx or tensorrt")
    tensorrt: str = of("its version")
    targets: list[str] = of("compute capabilities")
    plan_sha256: str = of("of the plan")
    plan_bytes: int = of("of the plan")
    source: Source = of("the model")
    plugins: Plugins | None = of("null without plugin layers")
    inputs: list[PlanTensor] = of("in network order")
    outputs: list[PlanTensor] = of("in network order")
    profiles: list[Profile] = of("none if every shape is static")
    plugin_layers: int = of("in the plan")
    custom_ops: dict[str, int] = of("custom nodes of the model, by op")
    layers: dict[str, int] = of("layers of the parsed network, by type")
    workspace_bytes: int | None = of("limit on scratch memory")
    build_seconds: float = of("parse and build")
    peak_host_bytes: int = of("most memory of the building process")


class Build(Manifest):
    """graphopt build"""

    plan: str = of("the plan")
    manifest: str = of("its manifest")
    warnings: list[str] = of("of the build")


class PlanLayer(Shape):
    """A layer of an engine."""

    name: str = of("as TensorRT names it")
    type: str = of("its kind")


class InspectPlan(Shape):
    """graphopt inspect MODEL.plan"""

    plan: str = of("the plan")
    manifest: Manifest = of("from beside it")
    problems: list[str] = of("why it cannot run here; none if it can")
    layers: list[PlanLayer] | None = of("null where they cannot be listed")
    layers_missing: str | None = of("why not")


class RunOutput(Shape):
    """An output of a run."""

    name: str = of("its name")
    dtype: str = of("element type")
    shape: list[int] = of("its sizes")
    first: list[float | int | bool] = of("the first values")


class Run(Shape):
    """graphopt run"""

    plan: str = of("the plan")
    outputs: list[RunOutput] = of("in order")
    file: str | None = of("where they were written")


class Generate(Shape):
    """graphopt generate"""

    model: str = of("the model or plan")
    runner: str = of("what computed")
    cache: str = of("kind of the key-value cache; none without one")
    capacity: int | None = of("tokens that the cache holds")
    prompt_ids: list[int] = of("tokens of the prompt")
    text: str = of("what came out")
    ids: list[int] = of("its tokens, without the one that ended them")
    prompt_tokens: int = of("how many")
    ended: Literal["stop", "length"] = of("by an end token or stop string, or by the limit")
    first_token_seconds: float = of("to the first token")
    decode_seconds: float = of("from the first token to the last")
    decoded: int = of("tokens after the first, the one that ended them included")
    prefill_rate: float = of("tokens of the prompt per second")
    decode_rate: float | None = of("tokens per second after the first; null where there was one")


class Latency(Shape):
    """GPU time of a run in microseconds."""

    median_us: float = of("median")
    p90_us: float = of("90th percentile")
    p99_us: float = of("99th percentile")
    min_us: float = of("fastest")
    samples: int = of("runs")


class Memory(Shape):
    """Bytes on the device."""

    weights: int = of("of the engine")
    activations: int = of("and scratch")
    cache: int = of("keys and values")
    other_io: int = of("other inputs and outputs")


class OpTime(Shape):
    """All layers of one op."""

    op: str = of("its name")
    layers: int = of("how many")
    us: float = of("microseconds of a run")
    share: float = of("of all ops")


class EngineTimes(Shape):
    """How fast an engine is."""

    file: str = of("the plan")
    shapes: dict[str, list[int]] = of("of the inputs")
    latency: Latency = of("without a CUDA graph")
    cuda_graph: Latency | None = of("with one")
    memory: Memory = of("on the device")
    ops: list[OpTime] = of("the slowest first")


class Slower(Shape):
    """What is slower than in the baseline."""

    names: list[str] = of("nodes")
    us: float = of("microseconds of a run")
    baseline_us: float = of("in the baseline")
    sentence: str = of("all of it, for people")


class BenchEngine(Shape):
    """graphopt bench engine"""

    plan: EngineTimes = of("the plan")
    baseline: EngineTimes | None = of("what --baseline names")
    slower: list[Slower] = of("the largest loss first; optimize --from-profile reads it")


class KernelTime(Shape):
    """A row of benchmarks/results; the fields of the run are the same in all rows."""

    model_config = ConfigDict(extra="allow", strict=True)
    suite: str = of("of kernels")
    case: str = of("what was measured")
    scheme: str = of("of the weights")
    M: int = of("tokens")
    K: int = of("input channels")
    C: int = of("capacity of the outlier set")
    us: float = of("median microseconds")
    spread: float = of("interquartile range over the median")
    floor_us: float = of("least microseconds that the device allows")
    bytes: int = of("that must be moved")
    ops: int = of("that must be done")
    dtype: str = of("of activations")
    peers: dict[str, float] = of("microseconds of others that do the same")
    missing: dict[str, str] = of("why a peer has none")
    gpu: str = of("its name")


class BenchKernels(Shape):
    """graphopt bench kernels"""

    rows: list[KernelTime] = of("as results have them; also N (output channels) and what the run was made with")


class DeployTriton(Shape):
    """graphopt deploy triton"""

    repository: str = of("the folder")
    files: list[str] = of("in it")


class DeployTensorrtLlm(Shape):
    """graphopt deploy tensorrt-llm"""

    folder: str = of("the folder")
    files: list[str] = of("in it")


class DeployedFile(Shape):
    """A file of a folder that deploy wrote."""

    sha256: str = of("of its content")
    bytes: int = of("its size")


class DeployCheck(Shape):
    """graphopt deploy check: what graphopt.json says"""

    model_config = ConfigDict(extra="allow", strict=True)
    format: int = of("of graphopt.json")
    graphopt: str = of("version that wrote the folder")
    files: dict[str, DeployedFile] = of("by path; other fields say what the folder was made of")


class Check(Shape):
    """One line of the diagnosis."""

    name: str = of("what was looked at")
    status: Literal["ok", "note", "error"] = of("error keeps engines from being built or run")
    found: str = of("what is there")
    advice: str | None = of("what to do about it")


class Doctor(Shape):
    """graphopt doctor"""

    healthy: bool = of("no check is an error")
    checks: list[Check] = of("in order")
