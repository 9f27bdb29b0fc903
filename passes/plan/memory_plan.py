"""`MemoryPlan`: what was decided for one graph, and what it is predicted to cost."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from typing import Literal

from snnfx.passes.plan.memory_snapshot import write_snapshot
from snnfx.passes.plan.plan_json import plan_fields, plan_to_json
from snnfx.passes.plan.plan_plot import draw_plan
from snnfx.passes.plan.plan_summary import summarise
from snnfx.passes.plan.records import (
    Allocation,
    Decision,
    DecisionKind,
    PlanRecord,
    SavedTensor,
    Segment,
    Storage,
    TileAxis,
    Timeline,
)

__all__ = [
    "Allocation",
    "Decision",
    "DecisionKind",
    "MemoryPlan",
    "SavedTensor",
    "Segment",
    "Storage",
    "TileAxis",
    "Timeline",
]


@dataclass(frozen=True)
class MemoryPlan(PlanRecord):
    """The plan that was applied to one graph; `PlanRecord` lists its figures."""

    def summary(self, decisions: int = 8) -> str:
        """The plan in words, for people.

        Args:
            decisions: how many decisions are told in full; of the rest there is a count.
        """
        return summarise(self, decisions)

    def to_json(self) -> str:
        """All fields, the two peaks, and the version of the format, as JSON."""
        return plan_to_json(self)

    @classmethod
    def from_json(cls, text: str) -> MemoryPlan:
        """The plan that `to_json` wrote.

        Raises:
            PlanError: the text is no plan, or one of another version of the format.
        """
        return cls(**plan_fields(text))

    def plot(self, path: str | PathLike[str]) -> None:
        """Draw both timelines, activation bytes over the schedule, to an image file.

        Args:
            path: its suffix says in which format: .png, .svg or .pdf.

        Raises:
            PlanError: another suffix.
            ImportError: matplotlib is missing (``pip install snnfx[plot]``).
        """
        draw_plan(self, path)

    def to_memory_snapshot(
        self, path: str | PathLike[str], which: Literal["plan", "baseline"] = "plan"
    ) -> None:
        """Write a predicted timeline for PyTorch's memory visualiser.

        The file can be dropped on https://pytorch.org/memory_viz ("Active Memory Timeline"), or be
        given to ``python -m torch.cuda._memory_viz trace_plot FILE``.

        Args:
            path: where to write the pickle.
            which: the timeline under the plan, or the one without it.
        """
        write_snapshot(self.predicted if which == "plan" else self.baseline, path)
