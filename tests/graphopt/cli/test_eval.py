import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from graphopt import ir
from graphopt.cli.main import app
from graphopt.ir import kv_cache, origin
from graphopt.ir.kv_cache import KvCache
from graphopt.passes import CACHES
from tests.support import host_engine
from tests.support.arrays import activations
from tests.support.decoders import growing_profiles, write_decoder
from tests.support.language import bytes_tokenizer, write_bigram

#: A printable pattern without a period that chunks could fall into step with.
TEXT = "".join(chr(33 + (i * i) % 89) for i in range(4000))


@pytest.fixture
def folder(tmp_path: Path, rng: np.random.Generator) -> Path:
    """Two models of the vocabulary of bytes, a tokenizer beside them, and a text."""
    for name in ("model", "reference"):
        write_bigram(tmp_path / f"{name}.onnx", activations(rng, 256, 256) / 16)
    write_bigram(tmp_path / "uniform.onnx", np.repeat(activations(rng, 256, 1), 256, axis=1))
    bytes_tokenizer().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path


def _run(folder: Path, model: str, *arguments: object) -> tuple[int, str, str]:
    flags = ["--text", folder / "text.txt", "--chunks", 4, "--length", 64, *arguments]
    result = CliRunner().invoke(app, ["eval", "ppl", str(folder / model), *map(str, flags)])
    return result.exit_code, result.stdout, " ".join(result.stderr.split())


def test_a_uniform_model(folder: Path) -> None:
    code, out, _ = _run(folder, "uniform.onnx", "--json")
    assert code == 0
    data = json.loads(out)
    assert data["ppl"] == pytest.approx(256, rel=1e-6)
    assert (data["scheme"], data["kv"], data["tokens"], data["chunks"]) == ("fp", "none", 4 * 63, 4)
    assert (data["ppl_fp32"], data["kl"], data["bits_per_weight"]) == (None, None, None)
    assert len(data["chunk_nll"]) == 4


def test_results_are_recorded_once_per_scheme(folder: Path) -> None:
    results = folder / "accuracy" / "tiny.json"
    for scheme in ("fp", "mixq-w8a8", "mixq-w8a8"):
        flags = ["--reference", folder / "reference.onnx", "--results", results, "--scheme", scheme]
        code, out, _ = _run(folder, "model.onnx", *flags)
        assert code == 0
        assert "perplexity" in out
    rows = json.loads(results.read_text())
    assert [r["scheme"] for r in rows] == ["fp", "mixq-w8a8"]
    assert rows[0]["kl"] > 0
    assert rows[0]["ppl_fp32"] != rows[0]["ppl"]
    assert 0 <= rows[0]["top1_agreement"] <= 1


@pytest.mark.parametrize(
    ("format_", "bits", "name"), [("vq", 4.0, "cq4"), ("vq", 2.0, "cq2"), ("kv-mant4", 4.25, "mant4")]
)
def test_a_model_says_its_scheme_and_its_cache(folder: Path, format_: str, bits: float, name: str) -> None:
    assert format_ in CACHES
    model = ir.load(folder / "model.onnx")
    origin.write(model, "mixq-w4a8")
    kv_cache.write(model, KvCache(format_, "start", None, bits, ()))
    ir.save(model, folder / "opt.onnx")
    data = json.loads(_run(folder, "opt.onnx", "--json")[1])
    assert (data["scheme"], data["kv"], data["runner"]) == ("mixq-w4a8", name, "ONNX Runtime")
    data = json.loads(_run(folder, "opt.onnx", "--json", "--scheme", "mine", "--kv", "int8")[1])
    assert (data["scheme"], data["kv"]) == ("mine", "int8")


def test_a_plan_gives_the_row_of_its_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 64 tokens through a profile that takes 24 at a time."""
    host_engine.install(monkeypatch)
    write_decoder(folder / "decoder.onnx", vocabulary=256)
    host_engine.write_plan(
        folder / "decoder.plan", folder / "decoder.onnx", growing_profiles(((1, 24, 24), (0, 0, 64)))
    )
    files = ("decoder.onnx", "decoder.plan")
    ours, theirs = (json.loads(_run(folder, f, "--reference", folder / files[0], "--json")[1]) for f in files)
    assert theirs["runner"] == "TensorRT 8.6.0"
    np.testing.assert_allclose(theirs["chunk_nll"], ours["chunk_nll"], rtol=1e-5)
    assert theirs["kl"] < 1e-9
    same = ("scheme", "kv", "bits_per_weight", "tokens", "chunks", "ppl_fp32", "top1_agreement")
    assert [theirs[k] for k in same] == [ours[k] for k in same]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--kv", "cq5"], "unknown --kv 'cq5'; did you mean"),
        (["--chunks", "400"], "400 were asked for: give a longer text"),
        (["--tokenizer", "none.json"], "tokenizer none.json does not exist"),
        (["--reference", "none.onnx"], "none.onnx does not exist"),
    ],
)
def test_user_errors_exit_with_2(folder: Path, flags: list[str], message: str) -> None:
    code, out, err = _run(folder, "model.onnx", *flags)
    assert (code, out) == (2, "")
    assert message in err


def test_results_that_are_no_results_are_left_alone(folder: Path) -> None:
    (folder / "notes.json").write_text("{}")
    code, _, err = _run(folder, "model.onnx", "--results", folder / "notes.json")
    assert code == 2
    assert "is not a list of results" in err
    assert (folder / "notes.json").read_text() == "{}"


def test_help_teaches() -> None:
    result = CliRunner().invoke(app, ["eval", "ppl", "--help"])
    assert result.exit_code == 0
    assert "graphopt eval ppl model.opt.onnx --reference model.onnx" in result.stdout
