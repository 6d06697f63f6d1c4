"""The graph IR: onnx-graphsurgeon graphs with lazy weights, loaded and saved without ever holding all of them."""

__all__ = ["Model", "WeightStore", "load", "save"]

from graphopt.ir.io import load, save
from graphopt.ir.model import Model
from graphopt.ir.weights import WeightStore
