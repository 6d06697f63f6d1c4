import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import decoders
from typer.testing import CliRunner

from graphopt.cli.main import app
from tests.support.language import bytes_tokenizer, write_bigram

TEXT = "once upon a time"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model that recites a loop of letters, and its tokenizer."""
    backend = bytes_tokenizer()
    backend.decoder = decoders.ByteLevel()
    backend.save(str(tmp_path / "tokenizer.json"))
    table = np.random.default_rng(1).standard_normal((256, 256)).astype(np.float32)
    ids = backend.encode("abcdef.").ids
    for one, following in zip(ids, [*ids[1:], ids[0]], strict=True):
        table[one, following] = 20
    write_bigram(tmp_path / "m.onnx", table)
    return tmp_path


def run(folder: Path, *flags: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["generate", str(folder / "m.onnx"), *map(str, flags)])
    return result.exit_code, result.stdout, " ".join(result.stderr.split())


def test_the_text_goes_to_standard_output_alone(folder: Path) -> None:
    code, out, err = run(folder, "--prompt", "ab", "--max-new-tokens", 9)
    assert (code, out) == (0, "cdef.abcd\n")
    assert "has no key-value cache: every token computes all before it again" in err
    assert "2 + 9 tokens on ONNX Runtime, cache none: first token after" in err


def test_the_text_at_once(folder: Path) -> None:
    assert run(folder, "--prompt", "ab", "--max-new-tokens", 9, "--no-stream")[1] == "cdef.abcd\n"


def test_stop_strings(folder: Path) -> None:
    code, out, _ = run(folder, "--prompt", "ab", "--stop", "ef", "--stop", "zz")
    assert (code, out) == (0, "cd\n")


def test_json(folder: Path) -> None:
    code, out, _ = run(folder, "--prompt", "ab", "--max-new-tokens", 3, "--json")
    data = json.loads(out)
    assert code == 0
    assert (data["text"], data["ended"], data["cache"], data["runner"]) == ("cde", "length", "none", "ONNX Runtime")
    assert len(data["prompt_ids"]) == 2
    assert len(data["ids"]) == 3
    assert min(data["prefill_rate"], data["decode_rate"], data["first_token_seconds"]) > 0


def test_ids_need_no_tokenizer(folder: Path) -> None:
    ids = json.loads(run(folder, "--prompt", "abc", "--max-new-tokens", 2, "--json")[1])
    (folder / "tokenizer.json").unlink()
    code, out, _ = run(folder, "--prompt-ids", ",".join(map(str, ids["prompt_ids"])), "--max-new-tokens", 2)
    assert (code, [int(i) for i in out.split()]) == (0, ids["ids"])


def test_a_seed_repeats_its_draws(folder: Path) -> None:
    flags = ["--prompt", "a!", "--temperature", 30, "--top-p", 0.9, "--max-new-tokens", 12, "--seed"]
    one, same, other = (run(folder, *flags, seed)[1] for seed in (1, 1, 2))
    assert one == same != other


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give either --prompt TEXT or --prompt-ids IDS"),
        (["--prompt", "a", "--prompt-ids", "1"], "give either --prompt TEXT or --prompt-ids IDS"),
        (["--prompt-ids", "1,b"], "cannot read --prompt-ids '1,b'; write them like 1,15,7"),
        (["--prompt-ids", "1", "--stop", "x"], "--stop compares text; give --tokenizer too"),
        (["--prompt-ids", "999"], "holds ids from 999 to 999, but the model's table has 256 rows"),
        (["--prompt", ""], "the prompt has no tokens"),
        (["--prompt", "a", "--tokenizer", "none"], "none does not exist"),
        (["--prompt", "a", "--temperature", "-1"], "--temperature must be 0 or more"),
        (["--prompt", "a", "--runner", "tensorrt"], "unknown --runner 'tensorrt'; known: ort, reference, trt"),
        (["--prompt", "a", "--runner", "trt"], "--runner trt needs a plan, not"),
    ],
)
def test_user_errors_exit_with_2(folder: Path, flags: list[str], message: str) -> None:
    code, out, err = run(folder, *flags)
    assert (code, out) == (2, "")
    assert message in err


def test_a_missing_tokenizer_is_named(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    code, _, err = run(folder, "--prompt", "a")
    assert code == 2
    assert "tokenizer.json; say where the tokenizer is with --tokenizer, or give --prompt-ids" in err


def test_a_plan_without_its_manifest_is_named(folder: Path) -> None:
    (folder / "m.plan").write_bytes(b"x")
    result = CliRunner().invoke(app, ["generate", str(folder / "m.plan"), "--prompt-ids", "1"])
    assert result.exit_code == 2
    assert "has no manifest m.plan.json" in " ".join(result.stderr.split())
