"""What was counted: operations and bytes of a model, by module, stage and operator."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from os import PathLike
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from snnfx.op_counter.spikes import Count
from snnfx.op_counter.tracker import GLOBAL

if TYPE_CHECKING:
    from rich.table import Table

    from snnfx.op_counter.symbolic import Resizing, SymbolicCounts

Stage = Literal["forward", "backward"]

QUANTITIES = ("flops", "bytes", "mac", "ac", "synops")
"""What is counted: floating-point operations, bytes read and written, multiply-accumulates,
accumulates, synaptic operations."""


@dataclass(frozen=True)
class OperatorCount:
    """What all calls of one operator count, in one module and stage.

    Attributes:
        path: the modules that were running, outermost first, as `ActiveModuleTracker` names them;
            empty outside of all.
        stage: which half of the step.
        operator: an ATen operator.
        calls: how often it ran.
        counts: by quantity, see `QUANTITIES`; a quantity that has no rule for it is left out.
    """

    path: tuple[str, ...]
    stage: Stage
    operator: Any
    calls: int
    counts: Mapping[str, Count]


@dataclass(frozen=True)
class SpikeTensor:
    """A tensor of zeros and ones that rules asked about.

    Attributes:
        name: of the module that fires it, as in `OperatorCount.path`, without the outermost.
        numel: its elements, of all calls of that module together.
        rate: the share of ones, as it was counted with: measured, given, or a symbol.
        proven: whether it is proven to hold zeros and ones; else it was seen in the run.
    """

    name: str
    numel: int
    rate: Count
    proven: bool


@dataclass(frozen=True)
class CountReport:
    """The counts of one step of a model.

    Attributes:
        operators: what was counted, in the order in which it first ran.
        spike_tensors: what AC and SynOps depend on.
        unsupported: by quantity, the operators without a rule and how often they ran.
        warnings: what the user should know of these counts.
        resizing: how `symbolic` counts the step at other sizes; None where it cannot.
    """

    operators: tuple[OperatorCount, ...]
    spike_tensors: tuple[SpikeTensor, ...]
    unsupported: Mapping[str, Mapping[str, int]]
    warnings: tuple[str, ...]
    resizing: Resizing | None = field(default=None, repr=False, compare=False)

    def total(self, quantity: str, stage: Stage | None = None, scope: str = GLOBAL) -> Count:
        """The sum of a quantity.

        Args:
            quantity: one of `QUANTITIES`.
            stage: of one half of the step; None for both.
            scope: the name of a module, such as ``"VGG.features.0"``; default: everything.
        """
        return sum(
            entry.counts.get(quantity, 0)
            for entry in self._entries(stage)
            if scope == GLOBAL or scope in entry.path
        )

    def records(self, quantity: str, stage: Stage | None = None) -> dict[str, dict[Any, Count]]:
        """``records[scope][operator]`` of a quantity, as `BaseCounter.records` has them."""
        records: dict[str, dict[Any, Count]] = defaultdict(lambda: defaultdict(int))
        for entry in self._entries(stage):
            if quantity in entry.counts:
                for scope in (GLOBAL, *entry.path):
                    records[scope][entry.operator] += entry.counts[quantity]
        return {scope: dict(counts) for scope, counts in records.items()}

    def symbolic(self) -> SymbolicCounts:
        """The counts as expressions; see `snnfx.op_counter.symbolic.SymbolicCounts`.

        Raises:
            OptionError: the report does not come from `snnfx.op_counter.count` in this process.
            CaptureError: the counts are no polynomials of the sizes.
        """
        from snnfx.op_counter.symbolic import symbolic_counts

        return symbolic_counts(self)

    def table(self, depth: int | None = 3, title: str | None = None) -> Table:
        """A table for `rich.print`; see `snnfx.op_counter.report_table.report_table`."""
        from snnfx.op_counter.report_table import report_table

        return report_table(self, depth, title)

    def to_json(self) -> str:
        """Everything as JSON; see `from_json`."""
        from snnfx.op_counter.report_json import report_json

        return report_json(self)

    @staticmethod
    def from_json(text: str) -> CountReport:
        """The report that `to_json` wrote.

        Raises:
            OptionError: the text is no such report.
        """
        from snnfx.op_counter.report_json import report_from_json

        return report_from_json(text)

    def to_csv(self) -> str:
        """A line for each module, stage and operator, below a line of names."""
        from snnfx.op_counter.report_json import report_csv

        return report_csv(self)

    def plot(self, path: str | PathLike[str]) -> None:
        """Draw what operators count by stage; the suffix gives the format.

        Raises:
            OptionError: there is nothing to draw, or it depends on symbols.
            ImportError: matplotlib is missing.
        """
        from snnfx.op_counter.report_plot import draw_counts

        draw_counts(self, path)

    def roofline(self, path: str | PathLike[str], device: str) -> None:
        """Draw the layers on the roofline of a device; the suffix gives the format.

        Args:
            path: of the image file.
            device: a key of `snnfx.passes.cost.roofline.DEVICES`.

        Raises:
            OptionError: there is no such device, or no FLOPs and bytes.
            ImportError: matplotlib is missing.
        """
        from snnfx.op_counter.report_roofline import draw_roofline

        draw_roofline(self, path, device)

    def _entries(self, stage: Stage | None) -> Iterable[OperatorCount]:
        return (entry for entry in self.operators if stage in (None, entry.stage))


def frozen(counts: Mapping[str, Count]) -> Mapping[str, Count]:
    """A read-only copy."""
    return MappingProxyType(dict(counts))
