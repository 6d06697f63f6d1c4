"""What a generate model is told by the ``parameters`` of its config.pbtxt: what runs it, and what it refuses."""

__all__ = ["EXECUTIONS", "GenerateSettings"]

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from graphopt.errors import DeployError, nearest

#: Who executes a decoder -> what that is.
EXECUTIONS = {
    "ort": "ONNX Runtime on the CPU, inside the generate model",
    "trt": "graphopt's runner of plans, in the generate model: one engine, a context and CUDA graph per stream",
    "bls": "Triton's TensorRT backend, which keeps the caches and batches the streams; the generate model calls it",
}


@dataclass(frozen=True)
class GenerateSettings:
    """Settings of a generate model.

    Attributes:
        execution: a key of `EXECUTIONS`.
        engine: name of the engine model for ``bls``; empty otherwise.
        streams: texts that are made at the same time.
        waiting: requests that may wait for a stream; more are refused.
        max_prompt_tokens: longest prompt.
        max_new_tokens: most tokens that a request gets, and what it gets if it does not say.
        threads: of ONNX Runtime within an operator; 0 for all cores.
    """

    execution: str
    engine: str = ""
    streams: int = 4
    waiting: int = 64
    max_prompt_tokens: int = 1024
    max_new_tokens: int = 256
    threads: int = 0

    def __post_init__(self) -> None:
        if self.execution not in EXECUTIONS:
            raise DeployError(f"unknown execution '{self.execution}'{nearest(self.execution, EXECUTIONS)}")
        least = {"streams": 1, "waiting": 0, "max_prompt_tokens": 1, "max_new_tokens": 1, "threads": 0}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise DeployError(f"{name} must be at least {smallest}, not {getattr(self, name)}")

    @property
    def max_tokens(self) -> int:
        """Longest sequence that the model is fed: the last new token never is."""
        return self.max_prompt_tokens + self.max_new_tokens - 1

    def to_parameters(self) -> dict[str, str]:
        """Return Triton's ``parameters``."""
        return {name: str(value) for name, value in asdict(self).items()}

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Mapping[str, str]]) -> "GenerateSettings":
        """Read the ``parameters`` of a model configuration in JSON.

        Raises:
            DeployError: one is missing, or is no number where it should be.
        """
        values: dict[str, Any] = {}
        for field in fields(cls):
            try:
                text = parameters[field.name]["string_value"]
                values[field.name] = int(text) if field.type in (int, "int") else text
            except KeyError:
                raise DeployError(f"config.pbtxt has no parameter '{field.name}'; write the repository again") from None
            except ValueError as e:
                raise DeployError(f"parameter '{field.name}' of config.pbtxt must be a number, not '{text}'") from e
        return cls(**values)
