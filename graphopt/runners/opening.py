"""From a file to its runner."""

__all__ = ["KINDS", "open_runner"]

from pathlib import Path

from graphopt.errors import GraphOptError, nearest
from graphopt.runners.host import ort_runner, reference_runner
from graphopt.runners.protocol import Runner

#: Name of a runner -> what it is.
KINDS = {
    "ort": "ONNX Runtime on the CPU",
    "reference": "onnx.reference, the definition of the operators, slowly",
    "trt": "TensorRT on the GPU, from a plan",
}
_PLAN = ".plan"


def open_runner(
    path: Path,
    kind: str | None = None,
    *,
    plugins: Path | None = None,
    optimize: bool = True,
    threads: int | None = None,
    cuda_graph: bool = True,
) -> Runner:
    """Return the runner of a file; enter it to load the model.

    Args:
        path: an .onnx file, or a .plan with its manifest beside it.
        kind: a key of `KINDS`; None for ``trt`` for a plan and ``ort`` for anything else.
        plugins: plugin library for plans; None to look for it.
        optimize: whether ONNX Runtime may rewrite the graph.
        threads: for ONNX Runtime (default: all cores).
        cuda_graph: whether a plan's loop replays a CUDA graph where it can.

    Raises:
        GraphOptError: there is no such kind, it does not run such files, or the file cannot be used.
    """
    is_plan = path.suffix == _PLAN
    kind = kind or ("trt" if is_plan else "ort")
    if kind not in KINDS:
        raise GraphOptError(f"unknown --runner '{kind}'{nearest(kind, KINDS)}")
    if is_plan != (kind == "trt"):
        hint = "run it with --runner trt" if is_plan else f"make one with: graphopt build {path}"
        raise GraphOptError(
            f"--runner {kind} {'cannot run the plan' if is_plan else 'needs a plan, not'} {path}; {hint}"
        )
    if kind == "trt":
        # TensorRT's side is not needed where no plan is run.
        from graphopt.runners.tensorrt import PlanRunner

        return PlanRunner(path, plugins, cuda_graph=cuda_graph)
    return reference_runner(path) if kind == "reference" else ort_runner(path, optimize=optimize, threads=threads)
