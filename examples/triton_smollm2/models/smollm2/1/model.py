"""The model smollm2: text in, text out, one piece at a time. Written by graphopt 0.1.0."""

from pathlib import Path

import triton_python_backend_utils as pb_utils

import graphopt
from graphopt.deploy.triton.serving import GenerateModel, check_version


class TritonPythonModel:
    """What Triton's Python backend looks for."""

    def initialize(self, args):
        """Load the model."""
        check_version("0.1.0", graphopt.__version__)
        folder = Path(args["model_repository"]) / args["model_version"]
        self._model = GenerateModel(pb_utils, args["model_config"], folder)

    def execute(self, requests):
        """Answer later, from other threads."""
        self._model.execute(requests)

    def finalize(self):
        """Let go of the model."""
        self._model.close()
