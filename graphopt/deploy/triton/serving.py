"""The generate model: what Triton's Python backend calls in the ``model.py`` of a repository."""

__all__ = ["MANIFEST_STEM", "GenerateModel", "check_version"]

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from graphopt import log
from graphopt.deploy.triton.batches import BatchedRunner, Batches
from graphopt.deploy.triton.bls import BlsRunner
from graphopt.deploy.triton.request import FIELDS, RESULTS, GenerateRequest
from graphopt.deploy.triton.settings import GenerateSettings
from graphopt.deploy.triton.streams import Job, Part, Streams
from graphopt.engine import manifest as manifests
from graphopt.errors import DeployError, GraphOptError
from graphopt.generate import Sampler, generate
from graphopt.models.tokenizer import Tokenizer
from graphopt.runners import Decoder
from graphopt.runners.host import ort_runner
from graphopt.runners.tensorrt import PlanRunner

_logger = log.get(__name__)

#: The manifest of the engine model's plan lies beside model.py under the name that belongs to this plan.
MANIFEST_STEM = "engine.plan"
_KINDS: dict[str, Any] = {"TYPE_STRING": np.object_, "TYPE_INT32": np.int32}


class GenerateModel:
    """Text in, pieces of text out.

    Args:
        backend: Triton's module ``triton_python_backend_utils``.
        config: the model's configuration in JSON.
        folder: the version's folder: the model or its plan, and tokenizer.json.

    Raises:
        GraphOptError: something of it cannot be used, or does not take as many tokens as the limits allow.
    """

    def __init__(self, backend: Any, config: str, folder: Path) -> None:
        self._backend = backend
        self.settings = GenerateSettings.from_parameters(json.loads(config)["parameters"])
        self._open = ExitStack()
        words = Tokenizer.open(folder / "tokenizer.json")
        try:
            decoders = self._decoders(folder)
            for decoder in decoders:
                decoder.begin(self.settings.max_tokens)
                if self.settings.execution != "bls":  # which cannot be called before the server is up
                    generate(decoder, words.encode("a")[:1] or [0], Sampler(), max_new_tokens=2)
                _end_sequence(decoder)
            self._streams = Streams(decoders, words, self.settings, _end_sequence)
        except BaseException:
            self._open.close()
            raise

    def _decoders(self, folder: Path) -> list[Decoder]:
        settings = self.settings
        if settings.execution == "ort":
            # ONNX Runtime's sessions take calls from many threads, and the state is the loops'.
            runner = self._open.enter_context(ort_runner(folder / "model.onnx", threads=settings.threads or None))
            if not Batches.fits(runner):
                return [Decoder(runner) for _ in range(settings.streams)]
            batches = Batches(runner)
            return [Decoder(BatchedRunner(batches)) for _ in range(settings.streams)]
        if settings.execution == "trt":
            # The weights once; a context, a cache and a CUDA graph for each stream.
            first = self._open.enter_context(PlanRunner(folder / "model.plan"))
            others = [self._open.enter_context(first.sibling()) for _ in range(settings.streams - 1)]
            return [Decoder(runner) for runner in (first, *others)]
        plan = folder / MANIFEST_STEM
        manifest = manifests.read(plan)
        return [
            Decoder(self._open.enter_context(BlsRunner(plan, manifest, settings.engine, self._backend)))
            for _ in range(settings.streams)
        ]

    def execute(self, requests: list[Any]) -> None:
        """Take requests; every one of them is answered through its response sender."""
        for request in requests:
            sender = request.get_response_sender()
            try:
                self._streams.submit(self._job(request, sender))
            except GraphOptError as e:
                self._finish(sender, str(e))
            except Exception as e:  # without an answer, Triton waits for one even when it stops
                _logger.exception("a request failed")
                self._finish(sender, f"internal error: {type(e).__name__}: {e}")

    def close(self) -> None:
        """Stop the streams and let go of the model."""
        self._streams.close()
        self._open.close()

    def _job(self, request: Any, sender: Any) -> Job:
        arrays = {}
        for field in FIELDS:
            if (tensor := self._backend.get_input_tensor_by_name(request, field.name)) is not None:
                arrays[field.name] = tensor.as_numpy()
        return Job(
            GenerateRequest.read(arrays, self.settings, json.loads(request.parameters() or "{}")),
            send=lambda part: sender.send(self._response(part)),
            finish=lambda error: self._finish(sender, error),
            cancelled=sender.is_cancelled,
        )

    def _response(self, part: Part) -> Any:
        values = (part.text.encode(), part.finish_reason.encode(), part.prompt_tokens, part.completion_tokens)
        tensors = [
            self._backend.Tensor(field.name, np.array([value], _KINDS[field.kind]))
            for field, value in zip(RESULTS, values, strict=True)
        ]
        return self._backend.InferenceResponse(tensors)

    def _finish(self, sender: Any, error: str | None) -> None:
        final = self._backend.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        if error is None:
            sender.send(flags=final)
        else:
            response = self._backend.InferenceResponse([], self._backend.TritonError(error))
            sender.send(response, flags=final)


def _end_sequence(decoder: Decoder) -> None:
    if isinstance(decoder.runner, BlsRunner | BatchedRunner):
        decoder.runner.end()


def check_version(written_by: str, installed: str) -> None:
    """Refuse a repository of another version.

    Raises:
        DeployError: the versions differ.
    """
    if written_by != installed:
        raise DeployError(
            f"this repository was written by graphopt {written_by}, but the server has {installed}; install "
            f"graphopt=={written_by} there, or write the repository again"
        )
