"""What a run did to a model and why: the list of findings that every stage adds to."""

__all__ = ["Finding", "Report"]

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Status = Literal["rewritten", "skipped", "note"]


@dataclass(frozen=True)
class Finding:
    """One thing that a rule did or decided not to do.

    Attributes:
        stage: name of the pipeline stage.
        rule: name of the rule, or the stage again.
        node: name of the node in question.
        status: "rewritten", "skipped" (a near miss or a refusal) or "note".
        reason: for a refusal one clause that says why and names the culprit; for a rewrite what came out.
        detail: numbers that a machine may want (outlier count, bytes).
    """

    stage: str
    rule: str
    node: str
    status: Status
    reason: str
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass
class Report:
    """Findings in the order in which they were made, and the seconds each stage took.

    ``on_progress`` hears what a long stage is at.
    """

    findings: list[Finding] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    on_progress: Callable[[str], None] | None = field(default=None, compare=False, repr=False)
    _long: tuple[str, int, int] = field(default=("", 0, 0), init=False, compare=False, repr=False)

    def begin(self, stage: str, steps: int) -> None:
        """Say that a long stage begins, of so many steps."""
        self._long = stage, steps, 0

    def step(self, name: str) -> None:
        """Say what the next step of the long stage is about."""
        stage, steps, done = self._long
        self._long = stage, steps, done + 1
        if self.on_progress:
            self.on_progress(f"{stage}: {done + 1} of {steps}, {name}")

    def rewritten(self, stage: str, rule: str, node: str, reason: str, **detail: Any) -> None:
        """Record a rewrite."""
        self.findings.append(Finding(stage, rule, node, "rewritten", reason, detail))

    def skipped(self, stage: str, rule: str, node: str, reason: str, **detail: Any) -> None:
        """Record a refusal or near miss; ``reason`` names the culprit."""
        self.findings.append(Finding(stage, rule, node, "skipped", reason, detail))

    def note(self, stage: str, rule: str, node: str, reason: str, **detail: Any) -> None:
        """Record something the user should know that is neither."""
        self.findings.append(Finding(stage, rule, node, "note", reason, detail))

    def counts(self, status: Status) -> dict[str, int]:
        """Number of findings of ``status`` by rule."""
        return dict(sorted(Counter(f.rule for f in self.findings if f.status == status).items()))

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for ``--json``."""
        return {"findings": [asdict(f) for f in self.findings], "seconds": dict(self.seconds)}
