"""Text from a language model: sampling, decoding in a loop, and text that appears as it is made."""

__all__ = ["Generation", "Sampler", "TextStream", "generate"]

from graphopt.generate.sampling import Sampler
from graphopt.generate.session import Generation, generate
from graphopt.generate.stream import TextStream
