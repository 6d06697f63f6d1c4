"""Prompt in, tokens out: one prefill, then token by token."""

__all__ = ["Generation", "generate"]

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from graphopt.errors import GraphOptError
from graphopt.generate.sampling import Sampler
from graphopt.runners.decoder import Decoder


@dataclass(frozen=True)
class Generation:
    """What came out, and how long it took.

    Attributes:
        ids: the new tokens, without the one that ended them.
        prompt_tokens: number of tokens of the prompt.
        ended: by an end token or stop string, or by the limit.
        first_token_seconds: from the call to the first token: prefill and one choice.
        decode_seconds: from the first token to the last.
        decoded: tokens made after the first one, the one that ended them included.
    """

    ids: tuple[int, ...]
    prompt_tokens: int
    ended: Literal["stop", "length"]
    first_token_seconds: float
    decode_seconds: float
    decoded: int

    @property
    def prefill_rate(self) -> float:
        """Tokens of the prompt per second."""
        return self.prompt_tokens / self.first_token_seconds

    @property
    def decode_rate(self) -> float | None:
        """Tokens per second after the first; None where there was only one."""
        return self.decoded / self.decode_seconds if self.decoded else None

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for ``--json``; rates are tokens per second."""
        data = asdict(self) | {"ids": list(self.ids)}
        return data | {"prefill_rate": self.prefill_rate, "decode_rate": self.decode_rate}


def generate(
    decoder: Decoder,
    prompt: Sequence[int],
    sampler: Sampler,
    *,
    max_new_tokens: int,
    end: Collection[int] = (),
    on_token: Callable[[int], bool] | None = None,
) -> Generation:
    """Continue ``prompt``.

    Args:
        decoder: of an entered runner; its sequence is forgotten.
        prompt: at least one token.
        sampler: chooses among the logits.
        max_new_tokens: at least 1.
        end: tokens that end the text and do not belong to it.
        on_token: hears every token of the text as it is made; returns whether to stop after it.

    Raises:
        GraphOptError: the prompt is empty, or the model does not take so many tokens.
    """
    if not prompt or max_new_tokens < 1:
        raise GraphOptError("the prompt has no tokens; give at least one" if not prompt else "ask for at least 1 token")
    started = time.perf_counter()
    # The last token is never fed.
    decoder.begin(len(prompt) + max_new_tokens - 1)
    token = sampler.pick(decoder.feed(prompt)[0])
    first = last = time.perf_counter()
    ids: list[int] = []
    made = 1
    ended: Literal["stop", "length"] = "length"
    while True:
        if token in end:
            ended = "stop"
            break
        ids.append(token)
        if on_token is not None and on_token(token):
            ended = "stop"
            break
        if made == max_new_tokens:
            break
        token = sampler.pick(decoder.feed([token])[0])
        last = time.perf_counter()
        made += 1
    return Generation(tuple(ids), len(prompt), ended, first - started, last - first, made - 1)
