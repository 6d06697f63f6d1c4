"""Whole repositories: what is in them, what is refused, and that nothing half-written stays."""

import ast
import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from graphopt.deploy.triton import RepositoryOptions, check_repository, write_repository
from graphopt.deploy.triton.bls import BlsRunner
from graphopt.engine import manifest as manifests
from graphopt.errors import DeployError, GraphOptError, OutputError
from graphopt.runners.decoder import Decoder
from tests.support.decoders import static_profiles
from tests.support.language import write_bigram
from tests.support.plans import write_server_plan

pytest.importorskip("tritonclient.grpc", reason="tritonclient is not installed (pip extra 'triton')")

ROOT = Path(__file__).parents[4]
LIMITS: dict[str, Any] = {"max_prompt_tokens": 40, "max_new_tokens": 20}


def decoder_plan(folder: Path, model: Path, name: str = "m.plan", **facts: Any) -> Path:
    return write_server_plan(folder / name, model, static_profiles(((1, 16, 32), 64)), **facts)


def options(model: Path, **settings: Any) -> RepositoryOptions:
    return RepositoryOptions(**{"tokenizer": model.with_name("tokenizer.json"), **LIMITS, **settings})


def test_a_repository_for_onnx_runtime(text_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "repository"
    files = write_repository([text_model], out, options(text_model, name="tiny", execution="ort"))
    assert {str(f) for f in files} == {
        "README.md", "client.py", "graphopt.json", "models/tiny/1/model.onnx", "models/tiny/1/model.py",
        "models/tiny/1/tokenizer.json", "models/tiny/config.pbtxt", "run_triton.sh",
    }  # fmt: skip
    assert len(check_repository(out)["files"]) == len(files) - 1
    script = (out / "run_triton.sh").read_text()
    assert "--http-address=127.0.0.1" in script
    assert "--grpc-address=127.0.0.1" in script
    assert "--model-control-mode=none" in script, "clients could load code otherwise"
    assert os.access(out / "run_triton.sh", os.X_OK)
    assert subprocess.run(["sh", "-n", out / "run_triton.sh"], check=False).returncode == 0
    assert [p.name for p in out.parent.iterdir()] == ["repository"]


def test_a_repository_for_the_runner_of_plans(text_model: Path, tmp_path: Path) -> None:
    plan = decoder_plan(tmp_path, text_model)
    write_repository([plan], tmp_path / "r", options(text_model, name="tiny"))
    version = tmp_path / "r" / "models" / "tiny" / "1"
    assert (version / "model.plan").read_bytes() == plan.read_bytes()
    assert manifests.read(version / "model.plan") == manifests.read(plan)
    assert "tensorrt==10.14.1" in (tmp_path / "r" / "README.md").read_text()


def test_a_repository_for_the_tensorrt_backend(text_model: Path, tmp_path: Path) -> None:
    plans = [
        decoder_plan(tmp_path, text_model, f"{n}.plan", targets=[target]) for n, target in enumerate(("8.9", "9.0"))
    ]
    out = tmp_path / "r"
    write_repository(plans, out, options(text_model, name="tiny", execution="bls"))
    engine = out / "models" / "tiny_engine"
    assert {p.name for p in (engine / "1").glob("*.plan")} == {"model.plan", "model_sm89.plan", "model_sm90.plan"}
    assert 'key: "9.0"' in (engine / "config.pbtxt").read_text()
    # Four tensors of 2 heads, 64 rows, 16 channels of 4 bytes; in and out; 4 sequences; and 64 MiB.
    pool = 2 * 4 * (4 * 2 * 64 * 16 * 4) + (64 << 20)
    assert f"--cuda-memory-pool-byte-size=0:{pool} " in (out / "run_triton.sh").read_text()
    check_repository(out)
    text = (engine / "config.pbtxt").read_text().replace("TYPE_INT64", "TYPE_INT32")
    (engine / "config.pbtxt").write_text(text)
    with pytest.raises(DeployError, match="was changed since the folder was written"):
        check_repository(out)


def test_plugins_come_along(text_model: Path, tmp_path: Path) -> None:
    built = tmp_path / "built"
    built.mkdir()
    library = built / "libgraphopt_plugins.so"
    library.write_bytes(b"kernels")
    plan = decoder_plan(tmp_path, text_model, library=library)
    bls = options(text_model, execution="bls")
    assert "libgraphopt_plugins_autoreg.so is missing" in refused([plan], tmp_path, bls)
    (built / "libgraphopt_plugins_autoreg.so").write_bytes(b"registers")
    write_repository([plan], tmp_path / "b", bls)
    assert (tmp_path / "b" / "plugins" / library.name).read_bytes() == b"kernels"
    script = (tmp_path / "b" / "run_triton.sh").read_text()
    assert '--backend-config=tensorrt,plugins="$here/plugins/libgraphopt_plugins_autoreg.so"' in script
    write_repository([plan], tmp_path / "t", options(text_model))
    script = (tmp_path / "t" / "run_triton.sh").read_text()
    assert 'export GRAPHOPT_PLUGIN_LIBRARY="$here/plugins/libgraphopt_plugins.so"' in script
    assert "--backend-config" not in script
    other = tmp_path / "other.so"
    other.write_bytes(b"other kernels")
    assert "is not the library that the plan was built with" in refused(
        [plan], tmp_path, options(text_model, plugins=other)
    )
    old = built / "libgraphopt_plugins_trt8.so"
    old.write_bytes(b"kernels for TensorRT 8")
    plan = decoder_plan(tmp_path, text_model, library=old)
    assert "cannot be registered in Triton; build with TensorRT 10 or 11" in refused([plan], tmp_path, bls)


def test_an_engine_that_is_no_language_model(tmp_path: Path) -> None:
    model = write_bigram(tmp_path / "b.onnx", np.eye(32, dtype=np.float32), output="scores")
    plan = write_server_plan(tmp_path / "b.plan", model, [{"input_ids": ((1, 1), (2, 8), (8, 16))}])
    files = write_repository([plan], tmp_path / "r", RepositoryOptions("scorer", max_batch=8))
    assert "models/scorer/1/model.plan" in {str(f) for f in files}
    assert not (tmp_path / "r" / "client.py").exists()
    with pytest.raises(DeployError, match="axis 0 of 'input_ids' is 9, but the engine takes 1 to 8"):
        write_repository([plan], tmp_path / "s", RepositoryOptions("scorer", max_batch=9))
    assert not (tmp_path / "s").exists()


def refused(models: Sequence[Path], folder: Path, choice: RepositoryOptions) -> str:
    before = sorted(p.name for p in folder.iterdir())
    with pytest.raises(GraphOptError) as e:
        write_repository(models, folder / "r", choice)
    assert sorted(p.name for p in folder.iterdir()) == before
    return str(e.value)


@pytest.mark.rtx
@pytest.mark.parametrize("cache", ["none", "growing", "static"])
def test_builds_with_room_for_prompt_and_text(
    cache: str, text_model: Path, tmp_path: Path, plugin_library: Path
) -> None:
    model = {"growing": text_model.with_name("growing.onnx"), "static": text_model}.get(cache, tmp_path / "b.onnx")
    if cache == "none":
        write_bigram(model, np.eye(256, dtype=np.float32))
        shutil.copy(text_model.with_name("tokenizer.json"), tmp_path)
    write_repository([model], tmp_path / "r", RepositoryOptions(**LIMITS, plugins=plugin_library))
    plan = tmp_path / "r" / "models" / "model" / "1" / "model.plan"
    decoder = Decoder(BlsRunner(plan, manifests.read(plan), "engine"))
    tokens = sum(LIMITS.values())
    assert decoder.kind == cache
    assert decoder.room(tokens) == (tokens if cache == "static" else None)
    with pytest.raises(GraphOptError, match="takes at most"):
        decoder.room(tokens + 2)


@pytest.mark.rtx
def test_names_the_model_and_not_the_plan_made_of_it(text_model: Path, tmp_path: Path) -> None:
    growing = text_model.with_name("growing.onnx")
    message = refused([growing], tmp_path, options(text_model, execution="bls"))
    assert message.startswith(f"{growing} has no cache of fixed capacity")


def test_what_cannot_be_served_is_named(text_model: Path, tmp_path: Path) -> None:
    plan, ort = decoder_plan(tmp_path, text_model), {"execution": "ort"}
    rtx = decoder_plan(tmp_path, text_model, "rtx.plan", flavour="rtx")
    growing = write_server_plan(tmp_path / "g.plan", text_model.with_name("growing.onnx"))
    bls = options(text_model, execution="bls")
    assert "which Triton does not run; build it with TensorRT" in refused([rtx], tmp_path, bls)
    assert "optimize" in refused([growing], tmp_path, bls)
    assert "takes at most 64 tokens, not the 99" in refused([plan], tmp_path, options(text_model, max_new_tokens=60))
    assert "one .onnx file, not" in refused([plan], tmp_path, options(text_model, **ort))
    assert "give one .onnx file, or plans only" in refused([plan, text_model], tmp_path, options(text_model))
    assert "say where the tokenizer is" in refused([plan], tmp_path, RepositoryOptions(**LIMITS))
    assert "runner serves one plan" in refused([plan, plan], tmp_path, options(text_model))
    assert "two plans are for compute capability 9.0" in refused([plan, plan], tmp_path, bls)
    assert "differ in inputs, outputs or profiles" in refused([plan, growing], tmp_path, bls)
    plan.write_bytes(b"another")
    assert "is not the plan that its manifest describes" in refused([plan], tmp_path, options(text_model))
    other = write_bigram(tmp_path / "b.onnx", np.eye(32, dtype=np.float32), output="scores")
    assert "has no output 'logits'" in refused([other], tmp_path, options(text_model, **ort))


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "a b", "x" * 65, "a\n"])
def test_names_are_no_paths(name: str) -> None:
    with pytest.raises(DeployError, match="cannot name a folder and a model"):
        RepositoryOptions(name)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"streams": 0}, "streams must be at least 1, not 0"),
        ({"max_prompt_tokens": 0}, "max_prompt_tokens must be at least 1"),
        ({"execution": "rtx"}, "unknown execution 'rtx'"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DeployError, match=message):
        RepositoryOptions(**settings).settings()


def test_what_is_there_stays(text_model: Path, tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    with pytest.raises(OutputError, match="it exists; delete it"):
        write_repository([text_model], tmp_path / "r", options(text_model, execution="ort"))
    assert not list((tmp_path / "r").iterdir())


def test_file_names_inside_a_model_lead_nowhere(text_model: Path, tmp_path: Path) -> None:
    """A data file outside the model's folder is refused, and a name inside it is not taken over."""
    model = onnx.load(text_model)
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="odd name.bin", size_threshold=0)
    write_repository([tmp_path / "m.onnx"], tmp_path / "r", options(text_model, execution="ort"))
    version = tmp_path / "r" / "models" / "model" / "1"
    assert {p.name for p in version.iterdir()} <= {"model.onnx", "model.onnx.data", "model.py", "tokenizer.json"}
    proto = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../../secret.bin"
    onnx.save(proto, tmp_path / "m.onnx")
    (tmp_path / "r").rename(tmp_path / "kept")
    assert "secret" in refused([tmp_path / "m.onnx"], tmp_path, options(text_model, execution="ort"))


def test_changes_are_found(text_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "r"
    write_repository([text_model], out, options(text_model, execution="ort"))
    source = out / "models" / "model" / "1" / "model.py"
    extra = source.with_name("numpy.py")
    extra.write_text("")
    with pytest.raises(DeployError, match=r"numpy.py does not belong to the folder"):
        check_repository(out)
    extra.unlink()
    source.unlink()
    with pytest.raises(DeployError, match=r"model.py is missing"):
        check_repository(out)
    manifest = json.loads((out / "graphopt.json").read_text())
    manifest["files"] = {"../../etc/passwd": {"sha256": "0", "bytes": 1}}
    (out / "graphopt.json").write_text(json.dumps(manifest))
    with pytest.raises(DeployError, match="which is not in the folder"):
        check_repository(out)
    (out / "graphopt.json").write_text("[]")
    with pytest.raises(DeployError, match=r"no readable graphopt.json"):
        check_repository(out)


def test_nothing_is_unpickled_or_evaluated() -> None:
    """By the calls in all sources: what graphopt reads is data.

    One module pickles what it hands to processes that it has started, through their pipes, and reads no such file.
    """
    found = set()
    hands_over = f"{ROOT / 'graphopt' / 'core' / 'processes.py'}: pickle"
    for package in ("graphopt", "passes", "models"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import | ast.ImportFrom):
                    names = [getattr(node, "module", None) or "", *(a.name for a in node.names)]
                    found |= {f"{path}: {n}" for n in names if n.split(".")[0] in ("pickle", "marshal", "shelve")}
                elif isinstance(node, ast.Call):
                    called = ast.unparse(node.func)
                    pickled = any(k.arg == "allow_pickle" and ast.unparse(k.value) != "False" for k in node.keywords)
                    if called in ("eval", "exec", "compile", "torch.load") or pickled:
                        found.add(f"{path}:{node.lineno}: {called}")
    assert found == {hands_over}
