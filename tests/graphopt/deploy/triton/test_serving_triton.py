"""A real tritonserver with a repository of ours, asked by real clients."""

import base64
import json
import queue
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphopt.deploy.triton import RepositoryOptions, check_repository, write_repository
from graphopt.generate import Sampler, generate
from graphopt.models.tokenizer import Tokenizer
from graphopt.runners import Decoder, open_runner
from tests.support.triton import Server, serving

pytestmark = pytest.mark.triton
grpcclient = pytest.importorskip("tritonclient.grpc", reason="tritonclient is not installed (pip extra 'triton')")
utils = pytest.importorskip("tritonclient.utils", reason="tritonclient is not installed (pip extra 'triton')")
httpclient = pytest.importorskip("tritonclient.http", reason="tritonclient is not installed (pip extra 'triton')")

NAME = "tiny"
#: A text of that many tokens takes longer than any test waits.
STREAMS, WAITING, PROMPT_TOKENS, NEW_TOKENS = 2, 2, 64, 20_000
PROMPT = "graph"


@pytest.fixture(scope="module")
def repository(text_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deployed") / "repository"
    options = RepositoryOptions(
        name=NAME,
        execution="ort",
        streams=STREAMS,
        waiting=WAITING,
        max_prompt_tokens=PROMPT_TOKENS,
        max_new_tokens=NEW_TOKENS,
        threads=1,
    )
    write_repository([text_model], folder, options)
    return folder


@pytest.fixture(scope="module")
def server(tritonserver: Path, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tritonserver, repository, tmp_path_factory.mktemp("log") / "server.log") as running:
        yield running
        # Cancelled requests, refused ones and vanished clients may not have worn it down.
        assert running.ready()
        assert running.stop() == 0


def expected(model: Path, count: int, sampler: tuple[float, float, int] = (0.0, 1.0, 0)) -> str:
    """What `graphopt generate` says."""
    words = Tokenizer.open(model.with_name("tokenizer.json"))
    with open_runner(model, threads=1) as runner:
        ids = generate(Decoder(runner), words.encode(PROMPT), Sampler(*sampler), max_new_tokens=count).ids
    return words.decode(ids)


def post(server: Server, verb: str, body: bytes | dict[str, Any]) -> tuple[int, str]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(f"{server.url}/v2/models/{NAME}/{verb}", data)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as e:
        return e.code, e.read().decode()


def events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line.removeprefix("data:")) for line in text.splitlines() if line.startswith("data:")]


def test_health_and_metadata(server: Server) -> None:
    http, grpc = (
        httpclient.InferenceServerClient(server.url[7:]),
        grpcclient.InferenceServerClient(f"127.0.0.1:{server.grpc}"),
    )
    for client in (http, grpc):
        assert client.is_server_live()
        assert client.is_model_ready(NAME)
    inputs = {i["name"]: (i["datatype"], i["shape"]) for i in http.get_model_metadata(NAME)["inputs"]}
    assert inputs["text_input"] == ("BYTES", [1])
    assert inputs["stop"] == ("BYTES", [-1])
    assert grpc.get_model_config(NAME).config.model_transaction_policy.decoupled


def test_generate_says_what_the_command_says(server: Server, text_model: Path) -> None:
    status, text = post(server, "generate", {"text_input": PROMPT, "max_tokens": 20})
    answer = json.loads(text)
    assert status == 200
    assert answer["text_output"] == expected(text_model, 20)
    assert (answer["finish_reason"], answer["prompt_tokens"], answer["completion_tokens"]) == ("length", 5, 20)


def test_sampling_and_stop(server: Server, text_model: Path) -> None:
    whole = expected(text_model, 20, (0.9, 0.95, 7))
    stop = whole[8:10]
    body = {"text_input": PROMPT, "max_tokens": 20, "temperature": 0.9, "top_p": 0.95, "seed": 7}
    assert json.loads(post(server, "generate", body)[1])["text_output"] == whole
    answer = json.loads(post(server, "generate", {**body, "stop": [stop]})[1])
    assert (answer["text_output"], answer["finish_reason"]) == (whole.partition(stop)[0], "stop")


def test_text_streams(server: Server, text_model: Path) -> None:
    status, text = post(server, "generate_stream", {"text_input": PROMPT, "max_tokens": 20, "stream": True})
    parts = events(text)
    assert status == 200
    assert len(parts) > 5
    assert "".join(p["text_output"] for p in parts) == expected(text_model, 20)
    assert [p["finish_reason"] for p in parts] == [""] * (len(parts) - 1) + ["length"]


def test_the_client_of_the_repository(server: Server, repository: Path, text_model: Path) -> None:
    command = [sys.executable, repository / "client.py", PROMPT, "--url", server.url, "--max-tokens", "12"]
    done = subprocess.run(command, capture_output=True, check=False)
    assert (done.returncode, done.stdout.decode()) == (0, expected(text_model, 12) + "\n")
    refused = subprocess.run([*command, "--temperature", "-1"], capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "temperature must be 0 or more" in refused.stderr


def test_concurrent_streams_are_not_mixed_up(server: Server, text_model: Path) -> None:
    seeds = range(STREAMS + WAITING)
    want = [expected(text_model, 30, (1.0, 1.0, seed)) for seed in seeds]
    got: dict[int, str] = {}

    def ask(seed: int) -> None:
        body = {"text_input": PROMPT, "max_tokens": 30, "stream": True, "temperature": 1.0, "seed": seed}
        got[seed] = "".join(p["text_output"] for p in events(post(server, "generate_stream", body)[1]))

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in seeds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [got[seed] for seed in seeds] == want


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"text_input": "x" * (PROMPT_TOKENS + 1)}, "the prompt has 65 tokens; 1 to 64 are taken here"),
        ({"text_input": "x" * 10**6}, "the prompt has 1000000 bytes; at most 2048 are taken here"),
        ({"text_input": ""}, "the prompt has 0 tokens"),
        ({"text_input": PROMPT, "max_tokens": NEW_TOKENS + 1}, "max_tokens must be 1 to 20000 here, not 20001"),
        ({"text_input": PROMPT, "max_token": 3}, "there is no field 'max_token'; did you mean 'max_tokens'?"),
        ({"text_input": PROMPT, "top_p": 0.0}, "top_p must be above 0 and at most 1"),
        ({"text_input": PROMPT, "stop": ["a"] * 17}, "stop takes at most 16 strings"),
        ({"max_tokens": 3}, "text_input"),
        ({"text_input": 3}, "string"),
        ({"text_input": [PROMPT, PROMPT]}, "shape"),
        (b'{"text_input": ', "JSON"),
        (b"\xff\xfe", "JSON"),
    ],
)
def test_what_cannot_be_served_is_said(server: Server, body: bytes | dict[str, Any], message: str) -> None:
    status, text = post(server, "generate", body)
    assert status in (400, 500)
    assert message in json.loads(text)["error"]


def stream_grpc(server: Server, **fields: Any) -> tuple[Any, queue.Queue[Any]]:
    client = grpcclient.InferenceServerClient(f"127.0.0.1:{server.grpc}")
    answers: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: answers.put(error or result))
    inputs = []
    types = {str: ("BYTES", np.object_), int: ("INT32", np.int32), bool: ("BOOL", np.bool_)}
    for name, value in fields.items():
        kind, dtype = types[type(value)]
        tensor = grpcclient.InferInput(name, [1], kind)
        tensor.set_data_from_numpy(np.array([value.encode() if isinstance(value, str) else value], dtype))
        inputs.append(tensor)
    client.async_stream_infer(NAME, inputs)
    return client, answers


def test_grpc_streams(server: Server, text_model: Path) -> None:
    client, answers = stream_grpc(server, text_input=PROMPT, max_tokens=15, stream=True)
    text, reason = "", ""
    while not reason:
        part = answers.get(timeout=60)
        text += part.as_numpy("text_output")[0].decode()
        reason = part.as_numpy("finish_reason")[0].decode()
    client.stop_stream()
    assert (text, reason) == (expected(text_model, 15), "length")


def test_cancelled_requests_make_room(server: Server) -> None:
    """One request more than there is room for is refused; when the others are cancelled, there is room again."""
    asked = [
        stream_grpc(server, text_input=PROMPT, max_tokens=NEW_TOKENS, stream=True, ignore_end=True)
        for _ in range(STREAMS + WAITING + 1)
    ]
    deadline = time.monotonic() + 30
    while not (refused := [e for _, answers in asked for e in list(answers.queue) if isinstance(e, Exception)]):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert ["all streams are busy and 2 requests wait; try again later" in str(e) for e in refused] == [True]
    for client, _ in asked:
        client.stop_stream(cancel_requests=True)
    while post(server, "generate", {"text_input": PROMPT, "max_tokens": 1})[0] != 200:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert not any(reasons(answers) & {"length", "stop"} for _, answers in asked)


def reasons(answers: queue.Queue[Any]) -> set[str]:
    parts = [a for a in answers.queue if not isinstance(a, Exception)]
    return {p.as_numpy("finish_reason")[0].decode() for p in parts if p.as_numpy("finish_reason") is not None}


def test_clients_that_go_away_make_room(server: Server) -> None:
    body = {"text_input": PROMPT, "max_tokens": NEW_TOKENS, "stream": True, "ignore_end": True}
    url, data = f"{server.url}/v2/models/{NAME}/generate_stream", json.dumps(body).encode()
    for _ in range(STREAMS):
        with urllib.request.urlopen(urllib.request.Request(url, data), timeout=60) as answer:
            answer.readline()  # it runs
    started = time.monotonic()
    assert post(server, "generate", {"text_input": PROMPT, "max_tokens": 1})[0] == 200
    assert time.monotonic() - started < 10


HOSTILE = """
class TritonPythonModel:
    def initialize(self, args):
        open({mark!r}, "w").close()
"""


def test_clients_cannot_change_what_is_served(server: Server, tmp_path: Path) -> None:
    """Triton's own way to run code: a model that a client loads."""

    def ask(path: str, body: dict[str, Any]) -> tuple[int, str]:
        request = urllib.request.Request(f"{server.url}/v2/{path}", json.dumps(body).encode())
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as e:
            return e.code, e.read().decode()

    mark = tmp_path / "executed"
    code = base64.b64encode(HOSTILE.format(mark=str(mark)).encode()).decode()
    output = {"name": "o", "data_type": "TYPE_INT32", "dims": [1]}
    config = json.dumps({"name": "evil", "backend": "python", "output": [output]})
    for name in ("evil", NAME):
        status, text = ask(
            f"repository/models/{name}/load", {"parameters": {"config": config, "file:1/model.py": code}}
        )
        assert status >= 400 and "not allowed" in text, text
    assert ask(f"repository/models/{NAME}/unload", {})[0] >= 400
    for api, setting in (("logging", "log_file"), ("trace/setting", "trace_file")):
        assert ask(api, {setting: str(tmp_path / "log")})[0] >= 400
    assert list(tmp_path.iterdir()) == [] and server.ready()
    with grpcclient.InferenceServerClient(f"127.0.0.1:{server.grpc}") as client:
        for change in (lambda: client.load_model(NAME), lambda: client.unload_model(NAME)):
            with pytest.raises(utils.InferenceServerException, match="not allowed"):
                change()


def test_killed_and_started_again(tritonserver: Path, repository: Path, text_model: Path, tmp_path: Path) -> None:
    with serving(tritonserver, repository, tmp_path / "first.log") as first:
        client, answers = stream_grpc(first, text_input=PROMPT, max_tokens=NEW_TOKENS, stream=True, ignore_end=True)
        answers.get(timeout=60)
        first.kill()
        assert "data:" not in post_or_gone(first)
        client.close()
    with serving(tritonserver, repository, tmp_path / "second.log") as second:
        answer = json.loads(post(second, "generate", {"text_input": PROMPT, "max_tokens": 8})[1])
        assert answer["text_output"] == expected(text_model, 8)
        # Triton waits for a text for the time that run_triton.sh gives it, and not longer.
        body = {"text_input": PROMPT, "max_tokens": NEW_TOKENS, "stream": True, "ignore_end": True}
        url = f"{second.url}/v2/models/{NAME}/generate_stream"
        with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode()), timeout=60) as endless:
            endless.readline()
            started = time.monotonic()
            second.stop()
            assert time.monotonic() - started < 30
    check_repository(repository)


def post_or_gone(server: Server) -> str:
    try:
        return post(server, "generate_stream", {"text_input": PROMPT, "stream": True})[1]
    except urllib.error.URLError:
        return "gone"
