"""Drive a real Triton server with a repository of `graphopt deploy triton`, whatever executes its model.

    python -m benchmarks.triton_drive out/repository smollm2 --tritonserver PATH --json triton.json

First the model that the repository holds is run here, without a server, for the texts that the server must give. Then
the server is started by the repository's script and asked over HTTP and, where tritonclient is installed, gRPC: health,
metadata, whole texts and streamed ones, several at a time, cancelled ones, prompts that are too long, malformed
requests, attempts to load models. It is killed, started again, and put under load (`benchmarks/triton_load.py`).
"""

import argparse
import json
import os
import platform
import queue
import re
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.triton_load import measure
from graphopt.deploy.triton.config import parse
from graphopt.generate import Sampler, generate
from graphopt.models.tokenizer import Tokenizer
from graphopt.results import provenance, write_rows
from graphopt.runners import Decoder, open_runner
from tests.support.triton import Server, serving

PROMPT = "The capital of France is"
TOKENS = 32
SEEDS = range(4)


class Driver:
    """Checks one repository.

    Args:
        repository: the folder.
        name: of its language model.
        tritonserver: the program.
        log: what the server prints.
    """

    def __init__(self, repository: Path, name: str, tritonserver: Path, log: Path) -> None:
        self.repository, self.name, self.tritonserver, self.log = repository, name, tritonserver, log
        self.folder = repository / "models" / name
        config = parse((self.folder / "config.pbtxt").read_text(encoding="utf-8"), name)
        self.settings = {key: value.string_value for key, value in config.parameters.items()}
        self.longest, self.longest_seconds = int(self.settings["max_new_tokens"]), 0.0
        self.checks = self.failures = 0
        self.words = Tokenizer.open(self.folder / "1" / "tokenizer.json")
        self.expected: dict[float, str] = {}

    def check(self, what: str, test: Callable[[], object]) -> None:
        """Count and print whether ``test`` raises nothing and does not return False."""
        self.checks += 1
        try:
            result = test()
            problem = "" if result is None or result else "no"
        except Exception as e:
            problem = f"{type(e).__name__}: {e}"
        self.failures += bool(problem)
        print(f"{'FAILED' if problem else 'ok'} {what} {problem[:400]}".rstrip(), flush=True)

    def expect(self) -> None:
        """Run the model without a server: the most probable text, and one for each seed."""
        plan = self.folder / "1" / "model.plan"
        model = plan if plan.exists() else plan.with_suffix(".onnx")
        threads = int(self.settings["threads"]) or None
        with open_runner(model, threads=threads) as runner:
            decoder = Decoder(runner)
            prompt = self.words.encode(PROMPT)
            for key, sampler in ((-1, Sampler()), *((seed, Sampler(1.0, 1.0, seed)) for seed in SEEDS)):
                made = generate(decoder, prompt, sampler, max_new_tokens=TOKENS, end=self.words.end_ids)
                self.expected[key] = self.words.decode(made.ids, skip_special_tokens=True)

    # -- requests

    def post(self, server: Server, path: str, body: bytes | dict[str, Any]) -> tuple[int, str]:
        """Return status and text of an answer."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        try:
            with urllib.request.urlopen(urllib.request.Request(f"{server.url}/v2/{path}", data), timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as e:
            return e.code, e.read().decode()

    def text(self, server: Server, **fields: Any) -> str:
        """Return a whole text."""
        status, answer = self.post(server, f"models/{self.name}/generate", {"text_input": PROMPT, **fields})
        assert status == 200, answer
        return str(json.loads(answer)["text_output"])

    def streamed(self, server: Server, **fields: Any) -> list[str]:
        """Return the pieces of a streamed text."""
        body = {"text_input": PROMPT, "stream": True, **fields}
        status, answer = self.post(server, f"models/{self.name}/generate_stream", body)
        parts = [json.loads(line[5:]) for line in answer.splitlines() if line.startswith("data:")]
        assert status == 200 and parts and all("error" not in p for p in parts), answer
        return [str(p["text_output"]) for p in parts]

    # -- checks

    def texts(self, server: Server) -> None:
        """Texts are those of the model without a server, alone and together."""
        greedy = {"max_tokens": TOKENS}
        self.check("generate gives the text of the model itself", lambda: self.same(-1, self.text(server, **greedy)))
        pieces = self.streamed(server, **greedy)
        self.check("generate_stream gives it in pieces", lambda: len(pieces) > TOKENS // 4)
        self.check("which add up to it", lambda: self.same(-1, "".join(pieces)))
        got: dict[int, str] = {}

        def ask(seed: int) -> None:
            got[seed] = "".join(self.streamed(server, max_tokens=TOKENS, temperature=1.0, seed=seed))

        threads = [threading.Thread(target=ask, args=(seed,)) for seed in SEEDS]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for seed in SEEDS:
            self.check(f"text {seed} of {len(SEEDS)} at a time", lambda s=seed: self.same(s, got[s]))
        stop = self.expected[-1].strip()[4:8]
        want = self.expected[-1].partition(stop)[0]
        self.check("a stop string ends the text", lambda: self.text(server, **greedy, stop=[stop]) == want)

    def same(self, key: int, got: str) -> None:
        """Compare with the text of the model itself."""
        if got != self.expected[key]:
            raise AssertionError(f"{got!r} is not {self.expected[key]!r}")

    def refusals(self, server: Server) -> None:
        """What cannot be served is refused with a sentence."""
        tokens = int(self.settings["max_prompt_tokens"])
        cases: list[tuple[bytes | dict[str, Any], str]] = [
            ({"text_input": "a b c d " * tokens}, "tokens; 1 to"),
            ({"text_input": "x" * 10**6}, "the prompt has 1000000 bytes"),
            ({"text_input": PROMPT, "max_tokens": self.longest + 1}, "max_tokens must be 1 to"),
            ({"text_input": PROMPT, "max_token": 3}, "did you mean 'max_tokens'"),
            ({"text_input": PROMPT, "top_p": 0.0}, "top_p must be"),
            ({"max_tokens": 3}, "text_input"),
            (b'{"text_input": ', "JSON"),
            (b"\xff\xfe", "JSON"),
        ]
        for body, sentence in cases:
            status, answer = self.post(server, f"models/{self.name}/generate", body)
            shown = str(body)[:60]
            self.check(f"refused: {shown}", lambda s=status, a=answer, t=sentence: s in (400, 500) and t in a)
        status, answer = self.post(server, "repository/models/evil/load", {"parameters": {"config": "{}"}})
        self.check("clients load no models", lambda: status >= 400 and "not allowed" in answer)
        self.check("the server listens on loopback only", lambda: self.only_loopback(server.http))

    def only_loopback(self, port: int) -> None:
        """No address but those of loopback listens on ``port``."""
        lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
        listening = [line.split()[1] for line in lines if line.split()[3] == "0A"]
        addresses = {a.split(":")[0] for a in listening if int(a.split(":")[1], 16) == port}
        assert addresses == {"0100007F"}, addresses

    def cancellation(self, server: Server) -> None:
        """Clients that go away free their streams."""
        url = f"{server.url}/v2/models/{self.name}/generate_stream"
        started = time.monotonic()
        self.text(server, max_tokens=self.longest, ignore_end=True)
        self.longest_seconds = time.monotonic() - started
        body = {"text_input": PROMPT, "max_tokens": self.longest, "stream": True, "ignore_end": True}
        for _ in range(int(self.settings["streams"])):
            with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode()), timeout=60) as answer:
                answer.readline()
        self.check("texts of clients that went away make room", lambda: self.room(server))

    def room(self, server: Server) -> bool:
        """Whether a stream is free much sooner than the longest text takes."""
        started = time.monotonic()
        self.text(server, max_tokens=1)
        seconds = time.monotonic() - started
        print(f"   after {1e3 * seconds:.0f} ms; a whole text takes {1e3 * self.longest_seconds:.0f}", flush=True)
        return seconds < self.longest_seconds / 2

    def grpc(self, server: Server) -> None:
        """The same over gRPC: metadata, a streamed text, a cancelled one."""
        try:
            import tritonclient.grpc as client_of
        except ImportError as e:
            print(f"skipped gRPC: {e}", flush=True)
            return
        with client_of.InferenceServerClient(f"127.0.0.1:{server.grpc}") as client:
            self.check("gRPC: live and ready", lambda: client.is_server_live() and client.is_model_ready(self.name))
            names = {i.name for i in client.get_model_metadata(self.name).inputs}
            self.check("gRPC: metadata", lambda: {"text_input", "stream", "stop"} <= names)
            whole = "".join(text for text, _ in grpc_parts(client_of, client, self.name, TOKENS, until="end"))
            self.check("gRPC: a streamed text", lambda: self.same(-1, whole))
            for _ in range(int(self.settings["streams"])):
                list(grpc_parts(client_of, client, self.name, self.longest, until="cancelled"))
            self.check("gRPC: cancelled texts make room", lambda: self.room(server))

    def health(self, server: Server) -> None:
        """Health and metadata over HTTP."""
        self.check("ready", server.ready)
        with urllib.request.urlopen(f"{server.url}/v2/models/{self.name}", timeout=10) as answer:
            inputs = {i["name"] for i in json.loads(answer.read())["inputs"]}
        self.check("metadata", lambda: {"text_input", "stream", "max_tokens"} <= inputs)

    def client(self, server: Server) -> None:
        """The repository's own client."""
        command = [sys.executable, self.repository / "client.py", PROMPT, "--url", server.url]
        done = subprocess.run([*command, "--max-tokens", str(TOKENS)], capture_output=True, check=False, timeout=60)
        self.check("client.py", lambda: self.same(-1, done.stdout.decode().removesuffix("\n")))

    @contextmanager
    def server(self) -> Iterator[Server]:
        """A running server, which must still be ready in the end and stop by itself."""
        started = time.monotonic()
        with serving(self.tritonserver, self.repository, self.log) as server:
            print(f"   ready after {time.monotonic() - started:.1f} s", flush=True)
            yield server

    def run(self) -> None:
        """All checks; the first server is killed, the second one stopped."""
        with self.server() as server:
            self.health(server)
            self.texts(server)
            self.client(server)
            self.refusals(server)
            self.cancellation(server)
            self.grpc(server)
            self.check("still ready", server.ready)
            server.kill()
            self.check("gone when killed", lambda: not server.ready())


def grpc_parts(client_of: Any, client: Any, name: str, tokens: int, *, until: str) -> Iterator[tuple[str, str]]:
    """Yield (text, why it ended) of a streamed text; cancel it after the third part where ``until`` says so."""
    answers: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: answers.put(error or result))
    inputs = []
    fields = {"text_input": ("BYTES", np.array([PROMPT.encode()], np.object_))}
    fields |= {"max_tokens": ("INT32", np.array([tokens], np.int32)), "stream": ("BOOL", np.ones(1, bool))}
    fields["ignore_end"] = "BOOL", np.array([until == "cancelled"])
    for field, (kind, array) in fields.items():
        tensor = client_of.InferInput(field, [1], kind)
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    client.async_stream_infer(name, inputs)
    for count in range(tokens + 1):
        part = answers.get(timeout=60)
        if isinstance(part, Exception):
            raise part
        reason = part.as_numpy("finish_reason")[0].decode()
        yield part.as_numpy("text_output")[0].decode(), reason
        if reason or (until == "cancelled" and count == 2):
            break
    client.stop_stream(cancel_requests=until == "cancelled")


def device_memory() -> dict[str, int]:
    """MiB in use on the first GPU; empty without one."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return {}
    return {"device_memory_mib": int(re.findall(r"\d+", done.stdout)[0])}


def load(driver: Driver, server: Server, args: argparse.Namespace) -> None:
    """Hold streams, and write a row for each number of them."""
    facts = {"model": driver.name, "device": args.device, "machine": platform.machine(), "settings": driver.settings}
    rows = []
    for streams in args.streams:
        before = {"tokens_per_text": args.tokens, "load_before": round(os.getloadavg()[0], 1)}
        row = measure(server.url, driver.name, streams, args.tokens, args.seconds)
        rows.append({**facts, **before, **row, **device_memory(), **provenance()})
        print(json.dumps(row), flush=True)
        if args.json:
            write_rows(args.json, rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repository", type=Path)
    parser.add_argument("model")
    parser.add_argument("--tritonserver", type=Path, required=True)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--tokens", type=int, default=32, help="of each text under load")
    parser.add_argument("--seconds", type=float, default=10, help="of load for each number of streams")
    parser.add_argument("--device", default=f"CPU, {os.cpu_count()} cores", help="what the server computes on")
    parser.add_argument("--log", type=Path, default=Path("tritonserver.log"))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    driver = Driver(args.repository.resolve(), args.model, args.tritonserver.resolve(), args.log)
    driver.expect()
    driver.run()
    with driver.server() as server:
        driver.check("the same text after a restart", lambda: driver.same(-1, driver.text(server, max_tokens=TOKENS)))
        load(driver, server, args)
        driver.check("stops by itself", lambda: server.stop() == 0)
    print(f"{driver.checks} checks, {driver.failures} failed")
    return int(bool(driver.failures))


if __name__ == "__main__":
    sys.exit(main())
