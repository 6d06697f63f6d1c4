"""Calibration: data sources, observers, and their collection through ONNX Runtime in bounded memory."""

__all__ = ["Corpus", "Session", "collect"]

from graphopt.calibrate.collect import collect
from graphopt.calibrate.corpus import Corpus
from graphopt.calibrate.session import Session
