"""A request for text: its fields, which the model's configuration declares, and what is refused before any work."""

__all__ = ["FIELDS", "RESULTS", "Field", "GenerateRequest"]

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from graphopt.deploy.triton.settings import GenerateSettings
from graphopt.errors import DeployError, nearest

#: A prompt of more bytes than this per token that it may have is refused before it is cut into tokens.
_BYTES_PER_TOKEN = 32
_MAX_STOPS, _MAX_STOP_BYTES = 16, 256
#: Parameters that Triton and its clients set themselves.
_RESERVED = ("triton_", "sequence_", "priority", "timeout", "binary_data", "headers")


@dataclass(frozen=True)
class Field:
    """An input or output of the generate model: name, Triton's type, dims (-1 for any number)."""

    name: str
    kind: str
    dims: tuple[int, ...] = (1,)
    optional: bool = True


FIELDS = (
    Field("text_input", "TYPE_STRING", optional=False),
    Field("stream", "TYPE_BOOL"),
    Field("max_tokens", "TYPE_INT32"),
    Field("temperature", "TYPE_FP32"),
    Field("top_p", "TYPE_FP32"),
    Field("seed", "TYPE_INT64"),
    Field("stop", "TYPE_STRING", (-1,)),
    Field("ignore_end", "TYPE_BOOL"),
)
RESULTS = (
    Field("text_output", "TYPE_STRING"),
    Field("finish_reason", "TYPE_STRING"),
    Field("prompt_tokens", "TYPE_INT32"),
    Field("completion_tokens", "TYPE_INT32"),
)


@dataclass(frozen=True)
class GenerateRequest:
    """What a client asks for.

    Attributes:
        text_input: the prompt; special tokens may be written out.
        max_tokens: at most this many new tokens.
        stream: one response per piece of text instead of one at the end.
        temperature, top_p, seed: as in `graphopt.generate.Sampler`.
        stop: strings that end the text.
        ignore_end: go on after tokens that end a text.
    """

    text_input: str
    max_tokens: int
    stream: bool = False
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    ignore_end: bool = False

    @classmethod
    def read(
        cls, arrays: Mapping[str, np.ndarray], settings: GenerateSettings, parameters: Iterable[str] = ()
    ) -> "GenerateRequest":
        """Read the inputs of a request.

        Args:
            arrays: by input name; those that were left out are missing.
            settings: holds the limits.
            parameters: names of the request's parameters. Triton takes JSON fields that are no input for parameters.

        Raises:
            DeployError: a field is unknown, has the wrong number of values or no valid ones, or exceeds a limit.
        """
        known = [f.name for f in FIELDS]
        for name in parameters:
            if not name.startswith(_RESERVED):
                raise DeployError(f"there is no field '{name}'{nearest(name, known)}")
        values = {f.name: _values(f, arrays[f.name]) for f in FIELDS if f.name in arrays}
        if "text_input" not in values:
            raise DeployError("the request has no field 'text_input'")
        single = {name: v[0] for name, v in values.items() if name != "stop"}
        request = cls(**{"max_tokens": settings.max_new_tokens, **single, "stop": tuple(values.get("stop", ()))})
        request._check(settings)
        return request

    def _check(self, settings: GenerateSettings) -> None:
        size, most = len(self.text_input.encode()), _BYTES_PER_TOKEN * settings.max_prompt_tokens
        if size > most:
            raise DeployError(f"the prompt has {size} bytes; at most {most} are taken here")
        if not 1 <= self.max_tokens <= settings.max_new_tokens:
            raise DeployError(f"max_tokens must be 1 to {settings.max_new_tokens} here, not {self.max_tokens}")
        if len(self.stop) > _MAX_STOPS or any(not 0 < len(s.encode()) <= _MAX_STOP_BYTES for s in self.stop):
            raise DeployError(f"stop takes at most {_MAX_STOPS} strings of 1 to {_MAX_STOP_BYTES} bytes each")
        if not 0 <= self.temperature < np.inf:
            raise DeployError(f"temperature must be 0 or more, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise DeployError(f"top_p must be above 0 and at most 1, not {self.top_p}")
        if self.seed < 0:
            raise DeployError(f"seed must be 0 or more, not {self.seed}")


def _values(field: Field, array: np.ndarray) -> list[Any]:
    """The values of a tensor as Python's."""
    if field.dims != (-1,) and array.shape != field.dims:
        raise DeployError(f"{field.name} must be a single value, not of shape {list(array.shape)}")
    values = array.ravel().tolist()
    if field.kind != "TYPE_STRING":
        return values
    try:
        return [v.decode() if isinstance(v, bytes) else str(v) for v in values]
    except UnicodeDecodeError as e:
        raise DeployError(f"{field.name} is not UTF-8 text (byte {e.start})") from e
