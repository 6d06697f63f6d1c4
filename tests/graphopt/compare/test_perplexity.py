from pathlib import Path

import numpy as np
import pytest

from graphopt.compare.perplexity import compare_logits, perplexity, token_scores
from graphopt.errors import CalibrationError, ModelError
from tests.support.arrays import activations
from tests.support.language import write_bigram

VOCABULARY = 64
#: Log probabilities are rounded to float32 once (half an ulp of up to 100 nats), and summed in float64.
ATOL = 2.0**-18


@pytest.fixture
def chunks(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, VOCABULARY, (5, 40))


def _table(rng: np.random.Generator, dtype: type = np.float32) -> np.ndarray:
    return (activations(rng, VOCABULARY, VOCABULARY) / 8).astype(dtype)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary(tmp_path: Path, chunks: np.ndarray) -> None:
    rows = np.random.default_rng(1).standard_normal((VOCABULARY, 1)).astype(np.float32)
    model = write_bigram(tmp_path / "m.onnx", np.repeat(rows, VOCABULARY, axis=1))
    result = perplexity(model, chunks, threads=1)
    assert result.ppl == pytest.approx(VOCABULARY, rel=1e-6)
    assert (result.tokens, result.chunks) == (5 * 39, 5)
    assert (result.kl, result.top1_agreement, result.ppl_reference) == (None, None, None)


def test_perplexity_and_divergence_equal_a_direct_computation(
    tmp_path: Path, rng: np.random.Generator, chunks: np.ndarray
) -> None:
    ours, theirs = _table(rng), _table(rng)
    calls: list[tuple[int, int]] = []
    result = perplexity(
        write_bigram(tmp_path / "a.onnx", ours),
        chunks,
        reference=write_bigram(tmp_path / "b.onnx", theirs),
        threads=1,
        progress=lambda *a: calls.append(a),
    )
    log_p, log_q = _log_softmax(ours[chunks[:, :-1]]), _log_softmax(theirs[chunks[:, :-1]])
    target = chunks[:, 1:, None]
    nll, nll_reference = (-np.take_along_axis(x, target, axis=-1)[..., 0] for x in (log_p, log_q))
    assert result.ppl == pytest.approx(np.exp(nll.mean()), rel=ATOL)
    assert result.ppl_reference == pytest.approx(np.exp(nll_reference.mean()), rel=ATOL)
    np.testing.assert_allclose(result.chunk_nll, nll.mean(axis=1), atol=ATOL)
    assert result.kl == pytest.approx((np.exp(log_q) * (log_q - log_p)).sum(axis=-1).mean(), abs=ATOL)
    assert result.top1_agreement == (log_p.argmax(axis=-1) == log_q.argmax(axis=-1)).mean()
    assert calls == [(i, 5) for i in range(1, 6)]


def test_a_model_agrees_with_itself(tmp_path: Path, rng: np.random.Generator, chunks: np.ndarray) -> None:
    model = write_bigram(tmp_path / "m.onnx", _table(rng))
    result = perplexity(model, chunks, reference=model, threads=1)
    assert (result.kl, result.top1_agreement) == (0, 1)
    assert result.ppl == result.ppl_reference


def test_half_precision_logits(tmp_path: Path, rng: np.random.Generator, chunks: np.ndarray) -> None:
    table = _table(rng, np.float16)
    got = perplexity(write_bigram(tmp_path / "m.onnx", table), chunks, threads=1).ppl
    log_p = _log_softmax(table[chunks[:, :-1]])
    nll = -np.take_along_axis(log_p, chunks[:, 1:, None], axis=-1).mean()
    assert got == pytest.approx(np.exp(nll), rel=ATOL)


def test_large_logits_do_not_overflow(rng: np.random.Generator) -> None:
    logits = activations(rng, 7, 50) * np.float32(1e4)
    targets = logits.argmax(axis=1)
    np.testing.assert_allclose(token_scores(logits, targets), -_log_softmax(logits)[np.arange(7), targets], atol=1e-6)


def test_tokens_ruled_out_by_the_reference_do_not_count(rng: np.random.Generator) -> None:
    ours, theirs = activations(rng, 3, 20), activations(rng, 3, 20)
    theirs[:, 15:] = -np.inf
    ours[:, 15:] = -np.inf
    targets = rng.integers(0, 15, 3)
    kl = compare_logits(ours, theirs, targets)[2]
    np.testing.assert_allclose(kl, compare_logits(ours[:, :15], theirs[:, :15], targets)[2], rtol=1e-6)
    assert (kl > 0).all()


def test_scores_do_not_depend_on_the_block_of_rows(rng: np.random.Generator) -> None:
    logits, targets = activations(rng, 100, 30), rng.integers(0, 30, 100)
    whole = token_scores(logits, targets)
    np.testing.assert_array_equal(whole[70:], token_scores(logits[70:], targets[70:]))
    np.testing.assert_array_equal(whole, compare_logits(logits, logits, targets)[0])


def test_models_that_do_not_fit_are_named(tmp_path: Path, rng: np.random.Generator, chunks: np.ndarray) -> None:
    model = write_bigram(tmp_path / "m.onnx", _table(rng))
    with pytest.raises(ModelError, match=r"other\.onnx has no output 'logits'; did you mean 'logit'"):
        perplexity(write_bigram(tmp_path / "other.onnx", _table(rng), output="logit"), chunks)
    small = write_bigram(tmp_path / "small.onnx", _table(rng)[:, :32])
    with pytest.raises(ModelError, match=r"has logits \(64,\), but .*small\.onnx has \(32,\)"):
        perplexity(model, chunks, reference=small, threads=1)
    with pytest.raises(CalibrationError, match="the model's table has 64 rows; was the text cut by another"):
        perplexity(model, chunks + VOCABULARY, threads=1)


def test_nan_logits_are_an_error_and_not_a_result(tmp_path: Path, rng: np.random.Generator, chunks: np.ndarray) -> None:
    table = _table(rng)
    table[chunks[0, 3], 7] = np.nan
    with pytest.raises(ModelError, match="its logits hold NaN"):
        perplexity(write_bigram(tmp_path / "m.onnx", table), chunks, threads=1)
