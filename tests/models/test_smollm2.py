"""The real SmolLM2-135M against what transformers and llama.cpp made of the same file (see fixtures/)."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from graphopt.models import assets
from graphopt.models.folder import write_folder
from graphopt.models.gguf_weights import GgufWeights
from graphopt.models.presets import LLAMA_PRESETS
from graphopt.models.smollm2 import open_smollm2
from graphopt.models.tokenizer import Tokenizer

pytestmark = pytest.mark.weights

FIXTURES = Path(__file__).parent / "fixtures"
#: What the project promises; measured: 4e-5 on logits of up to 35.
LOGIT_TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def weights() -> GgufWeights:
    return open_smollm2(assets.fetch("smollm2"))


@pytest.fixture(scope="module")
def tokenizer(weights: GgufWeights) -> Tokenizer:
    return Tokenizer.from_gguf(weights)


@pytest.fixture(scope="module")
def session(
    weights: GgufWeights, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ort.InferenceSession]:
    """The model in ONNX Runtime; its 540 MB are deleted afterwards."""
    folder = tmp_path_factory.mktemp("smollm2")
    files = write_folder(folder, weights, tokenizer)
    assert [f.name for f in files] == ["model.onnx", "model.onnx.data", "config.json", "tokenizer.json"]
    yield ort.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def recorded() -> dict[str, np.ndarray]:
    with np.load(FIXTURES / "smollm2_logits.npz") as arrays:
        return dict(arrays)


def test_configuration_is_the_published_one(weights: GgufWeights) -> None:
    assert weights.config == LLAMA_PRESETS["smollm2-135m"]


def test_every_weight_is_there(weights: GgufWeights) -> None:
    for name, shape in weights.config.weight_shapes().items():
        if "layers" not in name or "layers.29." in name:
            values = weights.tensor(name)
            assert values.shape == shape
            assert np.isfinite(values).all()


def test_tokens_are_those_of_llama_cpp(tokenizer: Tokenizer) -> None:
    cases = json.loads((FIXTURES / "smollm2_tokens.json").read_text(encoding="utf-8"))
    assert len(cases) > 5
    for case in cases:
        assert tokenizer.encode(case["text"]) == case["ids"]
        assert tokenizer.decode(case["ids"]) == case["text"]
    assert tokenizer.token_id("<|im_end|>") == 2
    assert tokenizer.vocab_size == 49152


def assert_logits(logits: np.ndarray, recorded: dict[str, np.ndarray], part: str, index: tuple[int, ...] = ()) -> None:
    """Compare [..., vocab] with the kept columns and the kept likeliest ids of ``recorded``."""
    top = recorded[f"{part}_top_ids"][index]
    for found, expected in (
        (logits[..., recorded[f"{part}_columns"]], recorded[f"{part}_values"][index]),
        (np.take_along_axis(logits, top, -1), recorded[f"{part}_top_values"][index]),
    ):
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, atol=LOGIT_TOLERANCE, rtol=0)
    np.testing.assert_array_equal(logits.argmax(-1), top[..., 0])


def step(
    session: ort.InferenceSession, ids: np.ndarray, mask: np.ndarray, cache: dict[str, np.ndarray]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Run the newest ``ids``; returns logits and the grown cache."""
    positions = np.maximum(mask.cumsum(-1) - 1, 0)[:, -ids.shape[1] :]
    if not cache:
        names = [i.name for i in session.get_inputs() if i.name.startswith("past_key_values")]
        cache = dict.fromkeys(names, np.zeros((len(ids), 3, 0, 64), np.float32))
    feeds = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, **cache}
    outputs = session.run(None, feeds)
    names = [o.name.replace("present", "past_key_values") for o in session.get_outputs()]
    grown = dict(zip(names, outputs, strict=True))
    return grown.pop("logits"), grown


def test_prefill_equals_transformers(session: ort.InferenceSession, recorded: dict[str, np.ndarray]) -> None:
    ids = recorded["prefill_ids"]
    logits, cache = step(session, ids, np.ones_like(ids), {})
    assert_logits(logits, recorded, "prefill")
    assert cache["past_key_values.29.value"].shape == (1, 3, ids.shape[1], 64)


@pytest.mark.parametrize("part", ["single", "batch"])
def test_decoding_equals_transformers(
    session: ort.InferenceSession, recorded: dict[str, np.ndarray], part: str
) -> None:
    ids, mask = recorded[f"{part}_ids"], recorded[f"{part}_mask"]
    assert (mask.sum() < mask.size) == (part == "batch")
    steps = len(recorded[f"{part}_values"])
    done, cache = 0, {}
    for i in range(steps):
        seen = ids.shape[1] - steps + 1 + i
        logits, cache = step(session, ids[:, done:seen], mask[:, :seen], cache)
        assert_logits(logits[:, -1], recorded, part, (i,))
        done = seen


def test_prefill_one_token_at_a_time(session: ort.InferenceSession, recorded: dict[str, np.ndarray]) -> None:
    ids, cache, rows = recorded["prefill_ids"][:, :12], {}, []
    for i in range(ids.shape[1]):
        logits, cache = step(session, ids[:, i : i + 1], np.ones((1, i + 1), np.int64), cache)
        rows.append(logits)
    assert_logits(np.concatenate(rows, 1), recorded, "prefill", (slice(None), slice(12)))


def test_it_speaks(session: ort.InferenceSession, tokenizer: Tokenizer) -> None:
    prompt = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    ids = np.array([tokenizer.encode(prompt)])
    fed, cache, answer = ids, {}, []
    while len(answer) < 16 and (not answer or answer[-1] != tokenizer.token_id("<|im_end|>")):
        mask = np.ones((1, ids.shape[1] + len(answer)), np.int64)
        logits, cache = step(session, fed, mask, cache)
        answer.append(int(logits[0, -1].argmax()))
        fed = np.array([[answer[-1]]])
    assert "Paris" in tokenizer.decode(answer)
