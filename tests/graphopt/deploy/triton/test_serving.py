"""The generate model with Triton's Python module faked, and plans on the CUDA that the host stands for."""

import json
import queue
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from graphopt.deploy.triton import RepositoryOptions, write_repository
from graphopt.deploy.triton.serving import GenerateModel, check_version
from graphopt.errors import DeployError, GraphOptError
from graphopt.generate import Sampler, generate
from graphopt.models.tokenizer import Tokenizer
from graphopt.runners import Decoder, open_runner
from tests.support import host_engine
from tests.support.decoders import static_profiles
from tests.support.plans import write_server_plan

pytest.importorskip("tritonclient.grpc", reason="tritonclient is not installed (pip extra 'triton')")

PROMPT, STREAMS = "decoder", 2


class Tensor:
    def __init__(self, name: str, array: np.ndarray) -> None:
        self.name, self.array = name, array

    def as_numpy(self) -> np.ndarray:
        return self.array


class Request:
    """A request and its response sender."""

    def __init__(self, parameters: str = "", **fields: np.ndarray) -> None:
        self.tensors = {name: Tensor(name, array) for name, array in fields.items()}
        self.sent: queue.Queue[tuple[Any, int]] = queue.Queue()
        self._parameters = parameters

    def parameters(self) -> str:
        return self._parameters

    def get_response_sender(self) -> "Request":
        return self

    def is_cancelled(self) -> bool:
        return False

    def send(self, response: Any = None, flags: int = 0) -> None:
        self.sent.put((response, flags))

    def answers(self) -> tuple[list[dict[str, Any]], str | None]:
        """All responses up to the final flag, and the error."""
        values, flags = [], 0
        error = None
        while not flags:
            response, flags = self.sent.get(timeout=60)
            if response is not None and response.error is not None:
                error = str(response.error)
            elif response is not None:
                values.append({t.name: t.array[0] for t in response.tensors})
        return values, error


BACKEND = SimpleNamespace(
    TRITONSERVER_RESPONSE_COMPLETE_FINAL=1,
    Tensor=Tensor,
    TritonError=str,
    InferenceResponse=lambda tensors, error=None: SimpleNamespace(tensors=tensors, error=error),
    get_input_tensor_by_name=lambda request, name: request.tensors.get(name),
)


def text(value: str) -> np.ndarray:
    return np.array([value.encode()], np.object_)


def configuration(repository: Path, **changed: str) -> str:
    """The configuration as Triton hands it to the model."""
    from graphopt.deploy.triton.config import parse

    config = parse((repository / "models" / "m" / "config.pbtxt").read_text(), "it")
    values = {k: v.string_value for k, v in config.parameters.items()} | changed
    return json.dumps({"parameters": {k: {"string_value": v} for k, v in values.items()}})


@pytest.fixture
def repository(text_model: Path, tmp_path: Path) -> Path:
    plan = write_server_plan(tmp_path / "m.plan", text_model, static_profiles(((1, 16, 32), 64)))
    options = RepositoryOptions(
        "m", tokenizer=text_model.with_name("tokenizer.json"), streams=STREAMS, max_prompt_tokens=20, max_new_tokens=40
    )
    write_repository([plan], tmp_path / "r", options)
    return tmp_path / "r"


def test_streams_of_plans(repository: Path, text_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = host_engine.install(monkeypatch)
    words = Tokenizer.open(text_model.with_name("tokenizer.json"))
    with open_runner(text_model, threads=1) as runner:
        decoder = Decoder(runner)
        want = [
            words.decode(generate(decoder, words.encode(PROMPT), Sampler(1.0, 1.0, seed), max_new_tokens=30).ids)
            for seed in range(5)
        ]
    model = GenerateModel(BACKEND, configuration(repository), repository / "models" / "m" / "1")
    fields = {"text_input": text(PROMPT), "max_tokens": np.array([30], np.int32), "temperature": np.ones(1, np.float32)}
    requests = [Request(**fields, seed=np.array([seed], np.int64)) for seed in range(5)]
    refused = Request('{"max_token": 3}', text_input=text(PROMPT))
    assert (cuda.engines, cuda.contexts) == (1, STREAMS), "streams share the weights"
    model.execute([*requests, refused])
    got = [r.answers() for r in requests]
    model.close()
    assert [(v[0]["text_output"].decode(), e) for v, e in got] == [(w, None) for w in want]
    assert refused.answers() == ([], "there is no field 'max_token'; did you mean 'max_tokens'?")
    assert not cuda.memory, "an engine still holds memory of the device"


def test_a_plan_that_is_too_small_for_the_limits_does_not_load(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = host_engine.install(monkeypatch)
    edited = configuration(repository, max_new_tokens="60")
    with pytest.raises(GraphOptError, match="takes at most 64 tokens, not the 79"):
        GenerateModel(BACKEND, edited, repository / "models" / "m" / "1")
    assert not cuda.memory


def test_damaged_settings_are_named(repository: Path) -> None:
    folder = repository / "models" / "m" / "1"
    with pytest.raises(DeployError, match=r"parameter 'streams' of config.pbtxt must be a number, not 'many'"):
        GenerateModel(BACKEND, configuration(repository, streams="many"), folder)
    with pytest.raises(DeployError, match=r"config.pbtxt has no parameter 'execution'"):
        GenerateModel(BACKEND, '{"parameters": {}}', folder)


def test_another_version_is_refused() -> None:
    check_version("1.2", "1.2")
    with pytest.raises(DeployError, match=r"written by graphopt 1\.2, but the server has 1\.3"):
        check_version("1.2", "1.3")
