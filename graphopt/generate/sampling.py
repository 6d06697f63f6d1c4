"""The next token out of its logits: the most probable one, or one drawn from the nucleus."""

__all__ = ["Sampler"]

from dataclasses import dataclass, field

import numpy as np

from graphopt.errors import GraphOptError

#: So many tokens are usually a nucleus.
_FEW = 256


@dataclass
class Sampler:
    """Nucleus sampling (Holtzman et al., "The Curious Case of Neural Text Degeneration", ICLR 2020, section 3.1).

        p = softmax(logits / temperature);  the smallest set of tokens with Σ p >= top_p;  one of them, by p

    Args:
        temperature: 0 takes the most probable token, the first of equals.
        top_p: in (0, 1]; 1 draws from all tokens.
        seed: of the draws.

    Raises:
        GraphOptError: a setting is out of range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    _rng: np.random.Generator = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < np.inf:
            raise GraphOptError(f"--temperature must be 0 or more, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise GraphOptError(f"--top-p must be above 0 and at most 1, not {self.top_p}")
        self._rng = np.random.default_rng(self.seed)

    def pick(self, logits: np.ndarray) -> int:
        """Return a token.

        Args:
            logits: (V,) floats; -inf rules a token out.
        """
        if self.temperature == 0:
            return int(np.argmax(logits))
        scaled = logits.astype(np.float64)
        p = np.exp((scaled - scaled.max()) / self.temperature)
        if self.top_p == 1:
            cumulative = np.cumsum(p)
            return int(np.searchsorted(cumulative, self._rng.random() * cumulative[-1], side="right"))
        share = self.top_p * p.sum()
        order, cumulative = _most_probable(p, share)
        last = min(int(np.searchsorted(cumulative, share)), len(order) - 1)
        drawn = self._rng.random() * cumulative[last]
        return int(order[np.searchsorted(cumulative, drawn, side="right")])


def _most_probable(p: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Return tokens, the most probable first and equals in their order, and cumulative p; enough to reach ``share``.

    Sorting a whole vocabulary takes longer than a step of a small model on a GPU.
    """
    count = _FEW
    while count < len(p):
        found = np.sort(np.argpartition(-p, count)[:count])
        order = found[np.argsort(-p[found], kind="stable")]
        cumulative = np.cumsum(p[order])
        if cumulative[-1] >= share:
            return order, cumulative
        count *= 8
    order = np.argsort(-p, kind="stable")
    return order, np.cumsum(p[order])
