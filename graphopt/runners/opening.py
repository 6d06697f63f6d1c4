"""From a file to its runner."""

__all__ = ["KINDS", "open_runner", "running"]

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from graphopt.calibrate.feeds import Feed
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


@contextmanager
def running(
    path: Path,
    kind: str | None,
    feeds: Sequence[Feed],
    *,
    plugins: Path | None = None,
    optimize: bool = True,
    threads: int | None = None,
) -> Iterator[Runner]:
    """Yield the entered runner of a file that will run on ``feeds``: for them, an ONNX file becomes a plan for a while.

    The arguments and the errors are those of `open_runner`, and those of a build.
    """
    if kind != "trt" or path.suffix == _PLAN:
        with open_runner(path, kind, plugins=plugins, optimize=optimize, threads=threads) as runner:
            yield runner
        return
    from graphopt.runners.tensorrt import built

    with built(path, feeds, plugins) as runner:
        yield runner
