"""Perplexity of a language model, and how far its predictions are from those of a reference model.

    ppl = exp( mean over scored positions t of -log p(token[t+1] | token[..t]) )
    KL  = mean over scored positions of Σ_v p_ref(v) (log p_ref(v) - log p(v))

Both models run from their files: ONNX files with their function bodies, plans on the GPU. One chunk's logits are held
at a time.
"""

__all__ = ["PerplexityResult", "compare_logits", "perplexity", "token_scores"]

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.errors import ModelError
from graphopt.runners import Decoder, Runner, open_runner

#: Rows of logits worked on at once, so that temporaries stay in cache and far below the logits themselves.
_ROWS = 32


@dataclass(frozen=True)
class PerplexityResult:
    """Perplexity over a set of chunks, and agreement with the reference if there was one.

    Attributes:
        ppl: exp of the mean negative log likelihood over all scored tokens.
        chunk_nll: mean negative log likelihood of each chunk, in nats.
        tokens: scored tokens: each chunk but its first token.
        chunks: number of chunks.
        ppl_reference: perplexity of the reference, None without one.
        kl: mean Kullback-Leibler divergence from the reference's distribution to the model's, in nats.
        top1_agreement: share of positions at which both predict the same token.
    """

    ppl: float
    chunk_nll: tuple[float, ...]
    tokens: int
    chunks: int
    ppl_reference: float | None = None
    kl: float | None = None
    top1_agreement: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for ``--json``."""
        return asdict(self)


def perplexity(
    model: Path | Runner,
    chunks: np.ndarray,
    *,
    reference: Path | Runner | None = None,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PerplexityResult:
    """Score ``chunks`` with ``model``.

    Args:
        model: a decoder with an input ``input_ids`` and an output ``logits`` (B, S, V): a file, or a runner that was
            not entered.
        chunks: (count, S) token ids; each chunk starts from an empty cache.
        reference: a second model of the same vocabulary to compare distributions with.
        threads: for ONNX Runtime, where files are given (default: all cores).
        progress: called with (chunks done, chunks in all).

    Raises:
        ModelError: a file cannot be run, has no logits, or the vocabularies differ.
        CalibrationError: the model has inputs that do not follow from tokens, or another vocabulary than the tokens.
        EngineError: a plan cannot be run here.
    """
    nll, nll_reference, kl, same = [], [], 0.0, 0
    with ExitStack() as stack:

        def opened(source: Path | Runner) -> Decoder:
            runner = open_runner(source, threads=threads) if isinstance(source, Path) else source
            return Decoder(stack.enter_context(runner))

        decoder, other = opened(model), opened(reference) if reference else None
        for number, chunk in enumerate(chunks):
            logits, targets = _predict(decoder, chunk), chunk[1:]
            if other is None:
                nll.append(token_scores(logits, targets).mean())
            else:
                scores = compare_logits(logits, _expected(other, chunk, decoder, logits), targets)
                nll.append(scores[0].mean())
                nll_reference.append(scores[1].mean())
                kl += float(scores[2].sum())
                same += int(scores[3].sum())
            if progress:
                progress(number + 1, len(chunks))
    tokens = int(chunks.shape[0] * (chunks.shape[1] - 1))
    return PerplexityResult(
        ppl=float(np.exp(np.mean(nll))),
        chunk_nll=tuple(float(x) for x in nll),
        tokens=tokens,
        chunks=len(chunks),
        ppl_reference=float(np.exp(np.mean(nll_reference))) if reference else None,
        kl=kl / tokens if reference else None,
        top1_agreement=same / tokens if reference else None,
    )


def token_scores(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return -log softmax(logits)[target] for each row.

    Args:
        logits: (T, V) float32.
        targets: (T,) integers.

    Returns:
        (T,) float64, in nats.
    """
    result = np.empty(len(targets), np.float64)
    for start in range(0, len(targets), _ROWS):
        rows = slice(start, start + _ROWS)
        log_p = _log_probabilities(logits[rows])
        result[rows] = -np.take_along_axis(log_p, targets[rows, None], axis=1)[:, 0]
    return result


def compare_logits(
    logits: np.ndarray, reference: np.ndarray, targets: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Compare two predictions of the same rows.

    Args:
        logits, reference: (T, V) float32.
        targets: (T,) integers.

    Returns:
        -log p(target) of both, KL(reference || model) in nats, each (T,) float64; and (T,) bool, whether the most
        probable tokens are the same.
    """
    nll, nll_reference, kl = (np.empty(len(targets), np.float64) for _ in range(3))
    same = np.empty(len(targets), bool)
    for start in range(0, len(targets), _ROWS):
        rows = slice(start, start + _ROWS)
        log_p, log_q = _log_probabilities(logits[rows]), _log_probabilities(reference[rows])
        picked = targets[rows, None]
        nll[rows] = -np.take_along_axis(log_p, picked, axis=1)[:, 0]
        nll_reference[rows] = -np.take_along_axis(log_q, picked, axis=1)[:, 0]
        q = np.exp(log_q)
        # A token that the reference rules out (logit -inf) contributes 0, whatever the model says.
        terms = np.subtract(log_q, log_p, where=q > 0, out=np.zeros_like(q))
        kl[rows] = np.einsum("tv,tv->t", q, terms, dtype=np.float64)
        same[rows] = log_p.argmax(axis=1) == log_q.argmax(axis=1)
    return nll, nll_reference, kl, same


def _log_probabilities(logits: np.ndarray) -> np.ndarray:
    """Log softmax over the last axis, float32."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    total = np.exp(shifted).sum(axis=1, keepdims=True, dtype=np.float64)
    result: np.ndarray = shifted - np.log(total).astype(np.float32)
    return result


def _predict(decoder: Decoder, chunk: np.ndarray) -> np.ndarray:
    """Return the logits (S - 1, V) that predict the tokens of ``chunk`` (S,) but the first."""
    decoder.begin(len(chunk))
    return decoder.feed(chunk, last=False)[:-1]


def _expected(reference: Decoder, chunk: np.ndarray, decoder: Decoder, logits: np.ndarray) -> np.ndarray:
    expected = _predict(reference, chunk)
    if expected.shape != logits.shape:
        raise ModelError(
            f"{decoder.runner.path} has logits {logits.shape[1:]}, but {reference.runner.path} has {expected.shape[1:]}"
        )
    return expected
