"""Memory: a model is loaded, changed and saved with a few of its largest tensors in memory at once."""

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.support.arrays import weight

LAYERS, WIDTH = 37, 2048
TENSOR_BYTES = WIDTH * WIDTH * 4  # 16 MiB; 620 MB in all

#: Prints the peak of anonymous memory while the model is processed, over what it was before, in bytes. Mapped pages of
#: the files do not count: the system takes them back whenever it wants.
SCRIPT = """
    import sys, threading, time
    from pathlib import Path
    import numpy as np
    from graphopt import ir
    from graphopt.ir import weights

    def anonymous():
        status = Path("/proc/self/status").read_text()
        return int(status.split("RssAnon:")[1].split()[0]) * 1024

    peak, done = 0, threading.Event()
    def watch():
        global peak
        while not done.is_set():
            peak = max(peak, anonymous())
            time.sleep(0.002)

    before = anonymous()
    watcher = threading.Thread(target=watch)
    watcher.start()
    model = ir.load(sys.argv[1])
    if sys.argv[3] == "requantize":
        for node in model.graph.nodes:
            w = weights.read(node.inputs[1])
            node.inputs[1] = model.store.put(node.inputs[1].name + "_q", np.asarray(w * 2))
            model.tidy()
    ir.save(model, sys.argv[2], external_data=True)
    done.set()
    watcher.join()
    print(peak - before)
"""


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same 620 MB of random weights, once as external data and once inline."""
    folder = tmp_path_factory.mktemp("big")
    rng = np.random.default_rng(0)
    array = weight(rng, WIDTH, WIDTH)
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("MatMul", [f"h{i}", f"w{i}"], [f"h{i + 1}"]) for i in range(LAYERS)],
            "g",
            [helper.make_tensor_value_info("h0", TensorProto.FLOAT, ["n", WIDTH])],
            [helper.make_tensor_value_info(f"h{LAYERS}", TensorProto.FLOAT, ["n", WIDTH])],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=8,
    )
    lean = onnx.ModelProto()
    lean.CopyFrom(model)
    with (folder / "external.onnx.data").open("wb") as f:
        for i in range(LAYERS):
            array = np.roll(array, 1, axis=0)
            tensor = lean.graph.initializer.add(name=f"w{i}", dims=array.shape, data_type=TensorProto.FLOAT)
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", f.name.rpartition("/")[2]), ("offset", f.tell()), ("length", array.nbytes)):
                tensor.external_data.add(key=key, value=str(value))
            f.write(array.tobytes())
    onnx.save(lean, folder / "external.onnx")
    onnx.save(onnx.load(folder / "external.onnx"), folder / "inline.onnx")
    return {"external": folder / "external.onnx", "inline": folder / "inline.onnx"}


@pytest.mark.parametrize("work", ["copy", "requantize"])
@pytest.mark.parametrize("kind", ["external", "inline"])
def test_peak_is_a_few_of_the_largest_tensors(sources: dict[str, Path], tmp_path: Path, kind: str, work: str) -> None:
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(sources[kind]), str(tmp_path / "out.onnx"), work]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    saved = onnx.load(tmp_path / "out.onnx", load_external_data=False)
    assert len(saved.graph.initializer) == LAYERS
    assert (tmp_path / "out.onnx.data").stat().st_size == LAYERS * TENSOR_BYTES
    assert int(done.stdout) < 4 * TENSOR_BYTES
    (tmp_path / "out.onnx.data").unlink()
