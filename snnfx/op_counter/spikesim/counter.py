"""Counts what the 2D convolutions of a run would do on a SpikeSim accelerator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from snnfx.errors import UncountedError
from snnfx.op_counter.counter import BaseCounter
from snnfx.op_counter.spikes import is_binary_tensor
from snnfx.op_counter.spikesim.config import SpikeSimEnergyConfig
from snnfx.op_counter.spikesim.events import (
    Convolution,
    Pair,
    Tiling,
    dense_events,
    spike_events,
)
from snnfx.op_counter.spikesim.stages import Activity, Stage
from snnfx.op_counter.tracker import GLOBAL

aten = torch.ops.aten


class SpikeSimCounter(BaseCounter):
    """Counts cycles of processing elements, and the events of each stage.

    The model covers the inference of `torch.nn.Conv2d` (and subclasses) without groups. Whatever
    else convolves is warned of, once for each module, and counts nothing.

    Args:
        config: of the accelerator; later changes of it have no effect.
        strict: a warning is an error.
        verbose: print what each convolution counts.

    Attributes:
        warnings: what was outside of the model.

    Raises:
        OptionError: the configuration is invalid.
    """

    def __init__(self, *, config: SpikeSimEnergyConfig, strict: bool, verbose: bool) -> None:
        config.validate()
        self.config = config.copy()
        super().__init__({aten.convolution.default: self._pe_cycles})
        self.strict = strict
        self.verbose = verbose
        self.stages: dict[str, Stage] = {}
        self._warnings: dict[tuple[str, str], str] = {}

    @property
    def warnings(self) -> list[str]:
        return list(self._warnings.values())

    def reset(self) -> None:
        """Forget all that was counted and warned of."""
        super().reset()
        self.stages = {}
        self._warnings = {}

    def count(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        out: Any,
        active_modules: set[nn.Module] | None = None,
        parent_names: set[str] | None = None,
    ) -> int:
        """The cycles of processing elements of one convolution; 0 if it is outside of the model.

        Raises:
            UncountedError: the operator has no rule, or, with `strict`, is outside of the model.
        """
        if not self.has_rule(func):
            raise UncountedError(
                f"SpikeSim has no rule for {func}: it counts aten.convolution.default only"
            )
        scope = innermost(parent_names or set())
        refusal = _refusal(args, out, active_modules or set())
        if refusal is not None:
            kind, reason = refusal
            self._warn(kind, scope, f"SpikeSim leaves out a convolution in '{scope}': {reason}")
            return 0
        self._record(scope, args[0], self._convolution(args, out))
        return super().count(func, args, kwargs, out)

    def get_stage_stats(self) -> dict[str, dict[str, Any]]:
        """The sums of each stage, see `Stage.stats`."""
        return {scope: stage.stats() for scope, stage in self.stages.items()}

    def get_stage_metadata(self) -> dict[str, dict[str, Any]]:
        """The sizes of each stage, see `Stage.metadata`."""
        return {scope: stage.metadata() for scope, stage in self.stages.items()}

    def _pe_cycles(self, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int:
        del kwargs
        return self._convolution(args, out).pe_cycles

    def _convolution(self, args: tuple[Any, ...], out: Any) -> Convolution:
        x, weight, _, stride, padding, dilation = args[:6]
        out_channels, in_channels, height, width = map(int, weight.shape)
        return Convolution(
            Tiling(in_channels, out_channels, (height, width), self.config.xbar_size),
            tuple(map(int, x.shape)),
            tuple(map(int, out.shape)),
            _pair(stride),
            _pair(padding),
            _pair(dilation),
        )

    def _record(self, scope: str, x: torch.Tensor, conv: Convolution) -> None:
        stage = self.stages.setdefault(scope, Stage(scope, conv))
        if conv != stage.first:
            self._warn(
                "shapes",
                scope,
                f"SpikeSim stage '{scope}' is called with other shapes than before ("
                f"{conv.input_shape} to {conv.output_shape}, first {stage.first.input_shape} to "
                f"{stage.first.output_shape}): its metadata are of the first call, its counts and "
                "its energy of all",
            )
        by_events = self.config.activity_mode == "event" and is_binary_tensor(x)
        dense = dense_events(conv)
        active = spike_events(x, conv) if by_events else dense
        stage.add(conv, Activity(conv.pe_cycles, active, dense), by_events)
        if self.verbose:
            print(
                f"SpikeSim: {scope}: {conv.pe_cycles} cycles, {active.patch_tiles} of "
                f"{dense.patch_tiles} patches, {active.rows} of {dense.rows} rows, "
                f"{active.output_tile_sites} of {dense.output_tile_sites} sites"
            )

    def _warn(self, kind: str, scope: str, message: str) -> None:
        if self.strict:
            raise UncountedError(f"{message}; use strict=False to be warned only")
        self._warnings.setdefault((kind, scope), message)


def innermost(names: set[str]) -> str:
    """The module that is nested deepest among those that run; ``"Global"`` outside of all."""
    modules = names - {GLOBAL}
    return max(modules, key=lambda name: (name.count("."), len(name), name), default=GLOBAL)


def _refusal(
    args: tuple[Any, ...], out: Any, active_modules: set[nn.Module]
) -> tuple[str, str] | None:
    """Why a convolution is outside of the model, as a kind of reason and a text; else None."""
    x, weight, transposed, groups = args[0], args[1], bool(args[6]), int(args[8])
    modules = [module for module in active_modules if isinstance(module, nn.Conv2d)]
    if transposed:
        return "transposed", "it is transposed, and crossbars hold ordinary Conv2d weights"
    if {x.dim(), weight.dim(), out.dim()} != {4}:
        shapes = f"{tuple(x.shape)}, weight {tuple(weight.shape)}, output {tuple(out.shape)}"
        return "rank", f"it is not 2D: input {shapes}"
    if len(modules) != 1:
        return "module", f"it is not the one of a single nn.Conv2d ({len(modules)} are running)"
    if modules[0].training:
        return "training", "its module is in training mode, only inference is modelled: call eval()"
    if torch.is_grad_enabled():
        return "gradients", "gradients are enabled, only inference is modelled: use torch.no_grad()"
    if groups != 1:
        return "groups", f"it has {groups} groups, and crossbars read all input channels at once"
    return None


def _pair(sizes: Sequence[int]) -> Pair:
    """A size for the height and the width; one stands for both, as in ATen."""
    first, *_, last = (*sizes, sizes[-1])
    return int(first), int(last)
