"""The perplexity of a real model on real text, from its ONNX file."""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from graphopt import compile, ir
from graphopt.calibrate.corpus import Corpus
from graphopt.compare.perplexity import perplexity
from graphopt.core.recipe import Recipe
from graphopt.generate import Sampler, generate
from graphopt.models import assets
from graphopt.models.folder import write_folder
from graphopt.models.smollm2 import open_smollm2
from graphopt.models.tokenizer import Tokenizer
from graphopt.passes import CACHES, SCHEMES
from graphopt.runners import Decoder, open_runner

#: Of the weights in the asset, dequantized to float32: the mean negative log-likelihood, in nats, of each of 16
#: evaluation chunks of 512 tokens of the Wikipedia sample as our cleaning leaves it. Their mean is what is recorded.
CHUNK_NLL = (
    2.971096, 2.789698, 2.799464, 3.126876, 3.117857, 2.988250, 3.348931, 2.971696,
    2.693776, 3.518946, 2.952623, 3.420555, 3.133560, 2.840429, 2.692874, 3.458941,
)  # fmt: skip
#: One chunk in so many is run again here.
EVERY = 5
#: ONNX Runtime's kernels differ between CPUs in the last bits of a product; a wrong token or layer moves far more.
RELATIVE = 1e-4
RECORDED = Path(__file__).parents[3] / "benchmarks/results/accuracy/smollm2.json"

pytestmark = pytest.mark.weights("smollm2", "wikipedia")


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    # 540 MB: removed at once, which tmp_path would not be.
    with tempfile.TemporaryDirectory() as name:
        weights = open_smollm2()
        write_folder(name, weights, Tokenizer.from_gguf(weights))
        yield Path(name)


@pytest.fixture(scope="module")
def corpus(folder: Path) -> Corpus:
    return Corpus.from_file(assets.path("wikipedia"), folder / "tokenizer.json")


def test_perplexity_is_the_recorded_one(folder: Path, corpus: Corpus) -> None:
    (recorded,) = (r for r in json.loads(RECORDED.read_text()) if (r["scheme"], r["kv"]) == ("fp", "none"))
    assert recorded["ppl"] == pytest.approx(np.exp(np.mean(CHUNK_NLL)), rel=1e-6)
    result = perplexity(folder / "model.onnx", corpus.chunks("evaluation", len(CHUNK_NLL), 512)[::EVERY])
    assert result.chunk_nll == pytest.approx(CHUNK_NLL[::EVERY], rel=RELATIVE)
    assert result.tokens == len(CHUNK_NLL[::EVERY]) * 511


def test_the_text_is_all_there_and_no_chunk_is_used_twice(corpus: Corpus) -> None:
    assert 500_000 < len(corpus.tokens) < 570_000
    splits = [corpus.chunks("evaluation", 16, 512), corpus.chunks("calibration", 64, 256)]
    windows = [{tuple(w) for chunk in s for w in np.lib.stride_tricks.sliding_window_view(chunk, 32)} for s in splits]
    assert not windows[0] & windows[1]


def test_the_optimized_model_continues_a_sentence(folder: Path) -> None:
    """MixQ with a cache updated in place, without calibration: still a model that knows its capitals."""
    model = ir.load(folder / "model.onnx")
    compile.optimize(model, Recipe.preset("mixq-w8a8", SCHEMES).with_cache("static", {}, CACHES))
    ir.save(model, folder / "opt.onnx")
    words = Tokenizer.open(folder)
    with open_runner(folder / "opt.onnx") as runner:
        decoder = Decoder(runner)
        result = generate(decoder, words.encode("The capital of France is"), Sampler(), max_new_tokens=4)
    assert decoder.kind == "static"
    assert words.decode(result.ids).startswith(" Paris")
