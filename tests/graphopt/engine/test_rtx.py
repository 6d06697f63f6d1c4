"""The name that TensorRT-RTX's parser needs: fatal without the cure, harmless with it, in any kind of process."""

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from graphopt.engine import rtx
from graphopt.engine.flavour import Flavour
from graphopt.errors import EngineError

pytestmark = pytest.mark.rtx

RunPython = Callable[..., subprocess.CompletedProcess[str]]

PARSE = """
import sys
import tensorrt_rtx as trt
model, library, cured = sys.argv[1:]
if cured == "cured":
    from graphopt.engine import rtx
    rtx.make_loadable()
    assert rtx.resolves()
logger = trt.Logger(trt.Logger.ERROR)
builder = trt.Builder(logger)
assert trt.get_plugin_registry().load_library(library) is not None
network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
parser = trt.OnnxParser(network, logger)
assert parser.parse_from_file(model)
print("plugins:", [network.get_layer(i).type.name for i in range(network.num_layers)].count("PLUGIN_V3"))
"""


def test_cured_process_parses_plugins(
    run_python: RunPython, quantize_model: Callable[..., Path], plugin_library: Path, rtx_flavour: Flavour
) -> None:
    done = run_python(PARSE, quantize_model(count=2), plugin_library, "cured")
    assert (done.returncode, done.stdout) == (0, "plugins: 2\n"), done.stderr


def test_without_the_cure_the_process_dies(
    run_python: RunPython, quantize_model: Callable[..., Path], plugin_library: Path, rtx_flavour: Flavour
) -> None:
    """If this fails, TensorRT-RTX has been repaired and rtx.py can go."""
    done = run_python(PARSE, quantize_model(), plugin_library, "as it is", LD_LIBRARY_PATH="")
    assert done.returncode == -signal.SIGABRT


def test_selecting_the_flavour_is_enough_here(rtx_flavour: Flavour) -> None:
    assert rtx.resolves()
    library = rtx.loaded_library()
    assert library is not None
    assert library.is_file()
    rtx.make_loadable()  # a second time changes nothing
    assert rtx.loaded_library() == library


def test_nothing_to_resolve_before_the_import(run_python: RunPython) -> None:
    code = """
from graphopt.engine import rtx
from graphopt.errors import EngineError
assert rtx.loaded_library() is None and not rtx.resolves()
try:
    rtx.make_loadable()
except EngineError as e:
    print(e)
"""
    done = run_python(code)
    assert "pip install tensorrt-rtx" in done.stdout, done.stderr


def test_a_refusing_linker_is_reported_with_the_link_to_make(
    rtx_flavour: Flavour, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rtx, "resolves", lambda: False)
    with pytest.raises(EngineError, match=r"ln -s libtensorrt_rtx\.so\.\d+ .*/libtensorrt_rtx\.so$"):
        rtx.make_loadable()
