import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from graphopt.cli.main import app
from tests.support.text_model import write_text_model

pytest.importorskip("tritonclient.grpc", reason="tritonclient is not installed (pip extra 'triton')")


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["deploy", *map(str, arguments)])
    return result.exit_code, result.stdout, " ".join(result.stderr.split())


def test_write_and_check(tmp_path: Path) -> None:
    model, out = write_text_model(tmp_path), tmp_path / "repository"
    flags = ["-o", out, "--execution", "ort", "--max-prompt-tokens", 30, "--max-new-tokens", 10]
    code, text, err = run("triton", model, *flags, "--name", "tiny", "--json")
    assert code == 0
    assert "models/tiny/1/model.onnx" in json.loads(text)["files"]
    assert f"start it with: {out / 'run_triton.sh'}" in err
    assert run("check", out)[0] == 0
    (out / "client.py").write_text("")
    code, _, err = run("check", out)
    assert code == 2
    assert "client.py was changed since the folder was written" in err
    assert run("triton", model, *flags)[0] == 2
