"""The `Scheme` protocol: what a quantization scheme offers to the compiler."""

__all__ = ["Scheme"]

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from pydantic import BaseModel

from graphopt.core.op import OpSpec
from graphopt.core.report import Report
from graphopt.core.statistics import Statistics
from graphopt.ir.model import Model


class Scheme(Protocol):
    """A quantization scheme: settings, ops and a lowering. One folder in passes/ holds one scheme."""

    @property
    def name(self) -> str:
        """Name by which recipes call the scheme."""

    @property
    def config(self) -> type[BaseModel]:
        """Settings of the scheme: a pydantic model that forbids unknown keys."""

    @property
    def presets(self) -> Mapping[str, Mapping[str, Any] | Sequence[Mapping[str, Any]]]:
        """What ``--scheme NAME`` (such as ``mixq-w8a8``) stands for: settings, or layers of a recipe without scheme."""

    @property
    def ops(self) -> tuple[OpSpec, ...]:
        """The custom ops that `lower` emits."""

    def lower(
        self,
        model: Model,
        assignment: Mapping[str, Any],
        statistics: Statistics | None,
        report: Report,
        *,
        dry_run: bool,
    ) -> None:
        """Rewrite the canonical nodes named in ``assignment``.

        Args:
            model: canonical; changed in place.
            assignment: name of a Linear node -> an instance of ``config``.
            statistics: of the inputs of the linears, or None without calibration.
            report: gets one finding per assigned node: rewritten, or skipped with the reason.
            dry_run: only report what would be done; do not read weights, leave the model as it is.

        Raises:
            GraphOptError: the settings need statistics that are missing or do not fit, or a weight is NaN or Inf.
        """
