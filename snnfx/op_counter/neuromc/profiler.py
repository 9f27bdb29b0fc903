"""Energy of a run on the NeuroMC accelerator: forward, backward and optimizer."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from snnfx.errors import OptionError, ProfilerError, UncountedError
from snnfx.op_counter.counter import Ignored
from snnfx.op_counter.neuromc.config import MemoryHierarchyConfig
from snnfx.op_counter.neuromc.costs import CORE_TYPES
from snnfx.op_counter.neuromc.modules import Stage
from snnfx.op_counter.neuromc.optimizer import outside_of_model, pieces_of_step
from snnfx.op_counter.neuromc.recorder import Recorder
from snnfx.op_counter.neuromc.report import NeuroMCRuntimeEnergyReport, build_report

PHASES = ("forward", "backward", "optimizer")


class NeuroMCEnergyProfiler:
    """Energy of what runs while it is entered.

    ::

        profiler = NeuroMCEnergyProfiler()
        profiler.bind_model(model)
        with profiler:
            with profiler.stage("forward"):
                loss = loss_fn(model(x), y)
            with profiler.stage("backward", phase="backward"):
                loss.backward()
        print(profiler.get_report().summary())

    Each layer (convolution in 1D or 2D, linear, batch normalisation, neuron) and each functional
    operator of these kinds becomes one piece of work or two, for a core that the layer's input
    decides: spikes or values. See `snnfx.op_counter.neuromc.mapping` and ``.extra`` for the
    formulas, ``.operators`` and ``.recorder`` for where SpikingJelly 2.0.0 counts otherwise.

    Args:
        core_type: a label that the report repeats; the cores are chosen by what runs.
        memory_config: the memories; those of `MemoryHierarchyConfig` if None. It is copied.
        strict: what is outside of the model is an error, instead of a warning in the report.
        verbose: print each piece of work.
        extra_ignore_modules: modules, or types of modules, inside of which nothing is counted.

    Raises:
        OptionError: `core_type` is none of the model, or the memories are not complete.
    """

    def __init__(
        self,
        *,
        core_type: str = "fp_soma",
        memory_config: MemoryHierarchyConfig | None = None,
        strict: bool = False,
        verbose: bool = False,
        extra_ignore_modules: Sequence[Ignored] | None = None,
    ) -> None:
        if core_type not in CORE_TYPES:
            raise OptionError(f"core_type must be one of {', '.join(CORE_TYPES)}: {core_type!r}")
        config = memory_config or MemoryHierarchyConfig()
        config.validate()
        self.core_type = core_type
        self.memory_config = replace(config, memory_instances=dict(config.memory_instances))
        self.strict = strict
        self.verbose = verbose
        self.extra_ignore_modules = list(extra_ignore_modules or ())
        self._model: nn.Module | None = None
        self._optimizer: torch.optim.Optimizer | None = None
        self._recorder: Recorder | None = None
        self._stages: dict[str, Stage] = {}
        self._outside: list[str] = []
        self._running: ExitStack | None = None

    def bind_model(self, model: nn.Module) -> None:
        """Say which model will run. It is forgotten again when the profiler is left.

        Raises:
            ProfilerError: another model is bound.
        """
        if self._model is not None and self._model is not model:
            raise ProfilerError(
                "the profiler is bound to another model: enter and leave it first, or make a new "
                "profiler"
            )
        self._model = model

    def bind_optimizer(self, optimizer: torch.optim.Optimizer | None) -> None:
        """Say whose steps `record_optimizer_step` records."""
        self._optimizer = optimizer

    def __enter__(self) -> NeuroMCEnergyProfiler:
        """Forget what was recorded, and begin.

        Raises:
            ProfilerError: no model is bound, or it is entered already.
        """
        if self._running is not None:
            raise ProfilerError("the profiler is entered already; it counts one run at a time")
        if self._model is None:
            raise ProfilerError("no model is bound: call bind_model(model) before entering")
        self._recorder = Recorder(self._model, self.extra_ignore_modules, self.verbose)
        self._stages, self._outside = {}, []
        with ExitStack() as stack:
            stack.enter_context(self._recorder.watching())
            self._running = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        running, self._running, self._model = self._running, None, None
        if running is not None:
            running.__exit__(*error)

    @contextmanager
    def stage(
        self,
        name: str,
        *,
        phase: str = "forward",
        reuse_weights: bool = False,
        batch_norm_backward: bool = True,
    ) -> Generator[NeuroMCEnergyProfiler]:
        """Say what runs inside.

        Args:
            name: of the stage in the report; the same name goes on with the same stage.
            phase: ``"forward"``, ``"backward"`` or ``"optimizer"``.
            reuse_weights: whether the weights are in the cores from an earlier step or sample.
            batch_norm_backward: whether backwards of batch normalisation compute anything.

        Raises:
            OptionError: `phase` is none of the three, or the name was used with other options.
            ProfilerError: the profiler is not entered, or another stage runs.
        """
        recorder = self._recorder
        if self._running is None or recorder is None:
            raise ProfilerError("a stage is for inside: enter the profiler first")
        if recorder.stage.name in self._stages:
            raise ProfilerError(f"stage {recorder.stage.name!r} runs; stages do not nest")
        if phase not in PHASES:
            raise OptionError(f"phase must be one of {', '.join(PHASES)}: {phase!r}")
        stage = Stage(name, phase, reuse_weights, batch_norm_backward)
        if self._stages.setdefault(name, stage) != stage:
            raise OptionError(f"stage {name!r} was used before, with {self._stages[name]}")
        before, recorder.stage = recorder.stage, stage
        try:
            yield self
        finally:
            recorder.stage = before

    @contextmanager
    def suspend(self) -> Generator[NeuroMCEnergyProfiler]:
        """Record nothing inside."""
        recorder = self._recorder
        if recorder is None:
            yield self
            return
        before, recorder.paused = recorder.paused, True
        try:
            yield self
        finally:
            recorder.paused = before

    def record_optimizer_step(self, stage: str = "optimizer") -> None:
        """Record the step that the bound optimizer would make now; it is not made.

        Args:
            stage: its name in the report.

        Raises:
            ProfilerError: no optimizer is bound, or the profiler was never entered.
            OptionError: with `strict`, an optimizer or option that the model does not know.
        """
        if self._optimizer is None or self._recorder is None:
            raise ProfilerError(
                "no optimizer to record a step of: call bind_optimizer(optimizer), then enter the "
                "profiler"
            )
        outside = outside_of_model(self._optimizer)
        if outside and self.strict:
            raise OptionError(f"outside of the NeuroMC model: {'; '.join(outside)}")
        self._outside += [text for text in outside if text not in self._outside]
        self._recorder.add(pieces_of_step(self._optimizer, stage))

    def get_report(self) -> NeuroMCRuntimeEnergyReport:
        """The report of the last run.

        Raises:
            UncountedError: with `strict`, something ran that is outside of the model.
        """
        warnings = self._warnings()
        if warnings and self.strict:
            raise UncountedError(
                f"{'; '.join(warnings)}. Profile with strict=False to count the rest"
            )
        pieces = self._recorder.all_pieces() if self._recorder else []
        return build_report(pieces, self.memory_config, self.core_type, warnings)

    def get_total(self) -> float:
        """All of the energy, pJ."""
        return self.get_report().energy_total_pj

    def get_counts(self) -> dict[str, Any]:
        """Operations, bits, and counts by core and kind of work, as in the report."""
        report = self.get_report()
        return {
            "primitive_counts": report.primitive_counts,
            "memory_bits_by_level": report.memory_bits_by_level,
            "counts_by_core_type": report.counts_by_core_type,
            "counts_by_process_key": report.counts_by_process_key,
        }

    def _warnings(self) -> list[str]:
        recorder = self._recorder
        if recorder is None or not (recorder.outside or recorder.all_pieces() or self._outside):
            return ["nothing ran that the NeuroMC model knows"]
        warnings = [f"outside of the NeuroMC model: {text}" for text in self._outside]
        if recorder.outside:
            calls = [f"{name} (calls={count})" for name, count in sorted(recorder.outside.items())]
            warnings.append(f"outside of the NeuroMC model and left out: {', '.join(calls)}")
        return warnings
