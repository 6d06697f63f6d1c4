"""Sequences of an engine model in a real tritonserver.

The server of the package index has no TensorRT backend, so a Python model stands for it: it keeps the cache of each
sequence as that backend does, and runs the file that the plan would be built from. What it cannot show is whether the
TensorRT backend takes the configuration that `test_config.py` and `check_engine` compare with the plan.
"""

import json
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from graphopt.deploy.triton import RepositoryOptions, write_repository
from graphopt.deploy.triton.config import parse, to_text
from graphopt.generate import Sampler, generate
from graphopt.models.tokenizer import Tokenizer
from graphopt.runners import Decoder, open_runner
from tests.support.decoders import static_profiles
from tests.support.plans import write_server_plan
from tests.support.triton import serving

pytestmark = pytest.mark.triton
pytest.importorskip("tritonclient.grpc", reason="tritonclient is not installed (pip extra 'triton')")

STAND_IN = """
import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils

CAPACITY = {capacity}
START, END = 1, 2


class TritonPythonModel:
    def initialize(self, args):
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession({model!r}, options, providers=["CPUExecutionProvider"])
        self.outputs = [o.name for o in self.session.get_outputs()]
        self.pasts = {{i.name: i.shape for i in self.session.get_inputs() if i.name.startswith("past")}}
        self.open = {{}}

    def execute(self, requests):
        return [self.one(request) for request in requests]

    def one(self, request):
        sequence = request.correlation_id()
        if request.flags() & START:
            assert len(self.open) < {streams}, "a sequence was not ended"
            shapes = {{n: (1, s[1], CAPACITY, s[3]) for n, s in self.pasts.items()}}
            self.open[sequence] = {{n: np.full(s, 7, np.float32) for n, s in shapes.items()}}
        feeds = {{t.name(): t.as_numpy() for t in request.inputs()}}
        assert feeds["start"].shape == (1,), feeds["start"].shape
        values = dict(zip(self.outputs, self.session.run(None, {{**feeds, **self.open[sequence]}})))
        names = [n.replace("past_key_values", "present") for n in self.pasts]
        self.open[sequence] = {{past: values[n] for past, n in zip(self.pasts, names)}}
        if request.flags() & END:
            del self.open[sequence]
        return pb_utils.InferenceResponse([pb_utils.Tensor("logits", values["logits"])])
"""
STREAMS, CAPACITY, PROMPT, COUNT = 2, 64, "sequence", 20


@pytest.fixture(scope="module")
def repository(text_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with an engine model, whose engine is then replaced."""
    folder = tmp_path_factory.mktemp("bls")
    plan = write_server_plan(folder / "m.plan", text_model, static_profiles(((1, 16, 32), CAPACITY)))
    options = RepositoryOptions(
        name="tiny",
        execution="bls",
        tokenizer=text_model.with_name("tokenizer.json"),
        streams=STREAMS,
        max_prompt_tokens=40,
        max_new_tokens=COUNT,
    )
    repository = folder / "repository"
    write_repository([plan], repository, options)
    file = repository / "models" / "tiny_engine" / "config.pbtxt"
    config = parse(file.read_text(), "it")
    config.platform, config.backend, config.default_model_filename = "", "python", "model.py"
    config.sequence_batching.ClearField("state")
    config.instance_group[0].kind = config.instance_group[0].KIND_CPU
    file.write_text(to_text(config))
    source = STAND_IN.format(model=str(text_model), capacity=CAPACITY, streams=STREAMS)
    (file.parent / "1" / "model.py").write_text(source)
    return repository


def test_sequences_of_an_engine_model(tritonserver: Path, repository: Path, text_model: Path, tmp_path: Path) -> None:
    words = Tokenizer.open(text_model.with_name("tokenizer.json"))

    def expected(seed: int) -> str:
        with open_runner(text_model, threads=1) as runner:
            sampler = Sampler(1.0, 1.0, seed)
            ids = generate(Decoder(runner), words.encode(PROMPT), sampler, max_new_tokens=COUNT).ids
        return words.decode(ids)

    with serving(tritonserver, repository, tmp_path / "log") as server:

        def ask(seed: int) -> str:
            body = {"text_input": PROMPT, "temperature": 1.0, "seed": seed}
            request = urllib.request.Request(f"{server.url}/v2/models/tiny/generate", json.dumps(body).encode())
            with urllib.request.urlopen(request, timeout=60) as answer:
                return str(json.loads(answer.read())["text_output"])

        # More texts than sequences that Triton keeps: each must end its own.
        with ThreadPoolExecutor(6) as pool:
            got = list(pool.map(ask, range(6)))
    assert got == [expected(seed) for seed in range(6)]
