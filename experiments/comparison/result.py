"""A comparison while it is built: the report, its images, the checks and the numbers on top of the page."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from diffusion_core.parity.ladder import Check

__all__ = ["Comparison"]


@dataclass(eq=False)
class Comparison:
    """A comparison while it is built.

    Args:
        report: JSON values, see `experiments.report.comparison`.
        images: PNG and GIF files by the names that the report uses.
        checks: comparisons with their tolerances.
        headlines: the numbers on top of the page.
        different: what makes the runs different experiments.
    """

    report: dict[str, Any]
    images: dict[str, bytes] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)
    headlines: list[dict[str, str]] = field(default_factory=list)
    different: list[str] = field(default_factory=list)

    @property
    def passed(self) -> int:
        """The number of checks that pass."""
        return sum(c.passed for c in self.checks)

    @property
    def agree(self) -> bool | None:
        """Whether all checks pass; None if there is none."""
        return self.passed == len(self.checks) if self.checks else None

    def add_headline(self, label: str, value: str, note: str) -> None:
        """Add a number to the top of the page."""
        self.headlines.append({"label": label, "value": value, "note": note})
