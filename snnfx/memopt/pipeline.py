"""`memory_optimization` and `apply_gc`: put checkpoint containers where they save most.

One training step is recorded on fake tensors: nothing is computed, no memory is allocated, and the
model's state does not change. From the record it is proven which inputs are spikes, and predicted
what each choice of containers would need. Outputs, gradients, statistics and states of the model
stay what they were, bit for bit; where chunks along time add up a weight's gradient in another
order, in exact arithmetic.
"""

from __future__ import annotations

import copy
import warnings
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import nn

from snnfx.checkpointing import GCContainer, TCGCContainer
from snnfx.eager.trace import record_step, total_of
from snnfx.errors import CaptureError, SnnfxWarning
from snnfx.memopt.containers import Installed, Wrap, Wraps
from snnfx.memopt.device import resolve_device
from snnfx.memopt.facts import StepFacts, step_facts
from snnfx.memopt.levels import Levels, record_installed
from snnfx.memopt.options import MemOptArguments, MemOptOptions, resolve_options
from snnfx.memopt.search import SearchResult
from snnfx.memopt.selection import Selection, build_compressor, recommendation, select_modules
from snnfx.memopt.summary import MemOptSummary

Types = type[nn.Module] | tuple[type[nn.Module], ...]

_KINDS = ("manual", "bit", "null")
_NOT_RECORDED = "not_recorded"


def memory_optimization(
    net: nn.Module,
    instance: Types,
    dummy_input: tuple[Any, ...] | None = None,
    compress_x: bool | None = None,
    level: int | None = None,
    verbose: bool = False,
    temporal_split_factor: int = 2,
    max_split_rounds: int | None = None,
    max_candidates_per_round: int | None = None,
    warmup_in_main_process: bool | None = None,
    warmup_in_profile_workers: bool | None = None,
    prefer: str | None = None,
    profile: str | None = None,
    allow_expensive_profiling: bool | None = None,
    checkpoint_budget: str | None = None,
    max_gc_wrapped_modules: int | None = None,
    gc_target_budget_ratio: float | None = None,
    return_summary: bool = False,
) -> nn.Module | tuple[nn.Module, MemOptSummary]:
    """Put checkpoint containers into a model, so that training it takes less memory.

    Level 0: nothing. Level 1: each module of the types `instance` in a `GCContainer`. Level 2:
    where that lowers the predicted peak, containers around parts of a module (what its
    ``__spatial_split__()`` returns, or else modules that it calls). Level 3: where that is proven
    to change nothing and lowers the peak, chunks along time (`TCGCContainer`). Level 4: containers
    that the peak does not need are taken away again, most time saved first.

    Args:
        net: changed in place, and returned. `state_dict` keeps its keys.
        instance: the types of the modules to wrap, usually those of one layer or block.
        dummy_input: the arguments of `net`, of which shapes, dtypes and devices count. Needed for
            levels above 1; without it, no input is compressed.
        compress_x: whether inputs that are proven to fit into a few bits are packed (None: True);
            the attribute `x_compressor` of a module takes precedence.
        level: 0 to 4; None: that of the profile, or 0.
        verbose: whether each step is printed.
        temporal_split_factor: by how much the number of chunks along time grows in one split.
        max_split_rounds: splits at each of levels 2 and 3; None: no limit.
        max_candidates_per_round: containers tried in each round; None: no limit.
        warmup_in_main_process: whether a copy of the result trains one step on `dummy_input`, so
            that kernels are compiled; None: that of the profile, or False.
        warmup_in_profile_workers: accepted; there are no workers.
        prefer: one of `MEMOPT_PREFERENCES`: the profile and checkpoint budget where not given.
        profile: one of `MEMOPT_PROFILES`: values for what is not given.
        allow_expensive_profiling: False limits levels 2 and 3 to one split of one candidate.
        checkpoint_budget: one of `MEMOPT_CHECKPOINT_BUDGETS`: half, three quarters, or all modules.
        max_gc_wrapped_modules: how many are wrapped at most, those with the largest inputs.
        gc_target_budget_ratio: which part of them at most, in (0, 1].
        return_summary: whether to return a `MemOptSummary` as well.

    Raises:
        OptionError: a ValueError: an unknown name, a value outside of its range, a level above 1
            without `dummy_input`, or a model that is itself one of `instance`.
    """
    arguments = locals()
    given = {name: arguments[name] for name in MemOptArguments.__annotations__}
    options = resolve_options(has_dummy_input=dummy_input is not None, **cast("Any", given))
    summary = _Optimization(net, options, _arguments(dummy_input)).run(instance)
    return (net, summary) if return_summary else net


def apply_gc(
    net: nn.Module,
    instance: Types,
    dummy_input: tuple[Any, ...] | None = None,
    compress_x: bool | None = True,
    device: str = "cuda",
    checkpoint_budget: str | None = None,
    max_gc_wrapped_modules: int | None = None,
    gc_target_budget_ratio: float | None = None,
    return_summary: bool = False,
) -> nn.Module | tuple[nn.Module, dict[str, Any]]:
    """Put each module of some types into a `GCContainer`: level 1 of `memory_optimization`.

    Args:
        net: see `memory_optimization`, as all arguments but one.
        instance: the types of the modules to wrap.
        dummy_input: the arguments of `net`; without it no input is compressed.
        compress_x: whether inputs that are proven to fit into a few bits are packed.
        device: accepted; the model stays where it is, and is recorded there on fake tensors.
        checkpoint_budget: "speed", "balanced" or "memory".
        max_gc_wrapped_modules: how many modules are wrapped at most.
        gc_target_budget_ratio: which part of them at most, in (0, 1].
        return_summary: whether to return a dictionary of what was done as well: the fields of
            `MemOptSummary` whose names begin with ``gc_``, the compressor counts, the checkpoint
            budget, and ``budget_notes``.

    Raises:
        OptionError: see `memory_optimization`.
    """
    del device
    result = memory_optimization(
        net,
        instance,
        dummy_input,
        compress_x,
        level=1,
        checkpoint_budget=checkpoint_budget,
        max_gc_wrapped_modules=max_gc_wrapped_modules,
        gc_target_budget_ratio=gc_target_budget_ratio,
        return_summary=True,
    )
    assert isinstance(result, tuple)
    summary = asdict(result[1])
    kept = {
        name: value
        for name, value in summary.items()
        if name.startswith("gc_") or name.endswith("compressor_count")
    }
    report = {**kept, "checkpoint_budget": checkpoint_budget, "budget_notes": summary["notes"]}
    return (net, report) if return_summary else net


def _arguments(dummy_input: Any) -> tuple[Any, ...] | None:
    if dummy_input is None or isinstance(dummy_input, tuple):
        return dummy_input
    return tuple(dummy_input) if isinstance(dummy_input, list) else (dummy_input,)


@dataclass
class _Optimization:
    """One run of `memory_optimization`."""

    net: nn.Module
    options: MemOptOptions
    inputs: tuple[Any, ...] | None

    def run(self, instance: Types) -> MemOptSummary:
        """Change the model, and say what was done."""
        summary = _new_summary(self.options)
        if self.options.level == 0:
            summary.recommendation = recommendation(self.options, _NOTHING)
            return summary
        facts = self._facts(summary)
        selection = select_modules(
            self.net,
            instance,
            self.options.max_gc_wrapped_modules,
            self.options.gc_target_budget_ratio,
            None if facts is None else facts.input_bytes(),
            skip=(GCContainer,),
        )
        wraps = self._first_wraps(selection, facts, summary)
        try:
            if facts is not None:
                wraps = self._further_levels(wraps, facts, summary)
            self._install(wraps, facts, summary)
        except CaptureError as error:
            _note_nothing_was_done(summary, error)
        self._warm_up(summary)
        summary.recommendation = recommendation(self.options, selection)
        return summary

    def _facts(self, summary: MemOptSummary) -> StepFacts | None:
        """What a recorded step tells; None, with one warning, where it cannot be recorded."""
        if self.inputs is None:
            return None
        try:
            return step_facts(record_step(self.net, self.inputs))
        except CaptureError as error:
            warnings.warn(
                f"snnfx: level 1 without compression is applied, since {error}",
                SnnfxWarning,
                stacklevel=4,
            )
            summary.notes.append(f"fallback:{_NOT_RECORDED}")
            skipped = range(2, self.options.level + 1)
            summary.skipped_steps += [f"level{level}:{_NOT_RECORDED}" for level in skipped]
            summary.applied_level = 1
            return None

    def _first_wraps(
        self, selection: Selection, facts: StepFacts | None, summary: MemOptSummary
    ) -> Wraps:
        """Level 1."""
        wraps: dict[str, Wrap] = {}
        for path in selection.selected:
            refusal = _refusal(path, facts)
            if refusal:
                summary.notes.append(f"not_wrapped:{path}: {refusal}")
            else:
                wraps[path] = self._wrap(path, facts)
        summary.gc_candidate_count = len(selection.candidates)
        summary.gc_selected_count = len(selection.selected)
        summary.gc_selection_policy = selection.policy
        summary.gc_selected_modules = list(selection.selected)
        summary.gc_selection_explanation = selection.explanation
        summary.gc_wrap_count = len(wraps)
        kinds = [wrap.kind for wrap in wraps.values()]
        summary.manual_compressor_count = kinds.count("manual")
        summary.bit_compressor_count = kinds.count("bit") + kinds.count("grid")
        summary.null_compressor_count = kinds.count("null")
        summary.applied_steps.append("level1_gc")
        self._say(f"level 1: {len(wraps)} modules in containers; {selection.explanation}")
        return wraps

    def _wrap(self, path: str, facts: StepFacts | None) -> Wrap:
        known = None if facts is None else facts.modules.get(path)
        spec = getattr(self.net.get_submodule(path), "x_compressor", None)
        encoding = None if known is None else known.encoding
        return Wrap(path, *build_compressor(spec, encoding, self.options.compress_x))

    def _further_levels(self, wraps: Wraps, facts: StepFacts, summary: MemOptSummary) -> Wraps:
        """Levels 2 to 4."""
        if self.options.level > 1 and not wraps:
            skipped = range(2, self.options.level + 1)
            summary.skipped_steps += [f"level{level}:no_gccontainers" for level in skipped]
            return wraps
        assert self.inputs is not None
        levels = Levels(self.net, self.inputs, facts, self.options, self._wrap)
        for level, name in ((2, "spatial_split"), (3, "temporal_split"), (4, "unwrap")):
            if self.options.level < level:
                break
            result = levels.apply(level, wraps)
            self._note(level, name, result, summary)
            wraps = result.wraps
            while levels.complaints:
                warnings.warn(levels.complaints.pop(0), SnnfxWarning, stacklevel=4)
        return wraps

    def _note(self, level: int, name: str, result: SearchResult, summary: MemOptSummary) -> None:
        setattr(summary, f"{name}_count", len(result.changes))
        if result.changes:
            summary.applied_steps.append(f"level{level}_{name}")
        if result.skipped:
            summary.skipped_steps.append(f"level{level}:{result.skipped}")
        for line in (*result.changes, result.skipped):
            self._say(f"level {level}: {line}" if line else "")

    def _install(self, wraps: Wraps, facts: StepFacts | None, summary: MemOptSummary) -> None:
        """Put the containers in.

        Raises:
            CaptureError: the model does not run with them, and is left without.
        """
        installed = Installed(self.net)
        installed.install(wraps)
        if facts is not None:
            assert self.inputs is not None
            before = facts.step.peak_bytes
            with ExitStack() as undo:
                undo.callback(installed.remove)
                after = record_installed(self.net, self.inputs).peak_bytes
                undo.pop_all()
            summary.notes.append(f"predicted_peak_bytes:{before}->{after}")
            self._say(f"predicted peak of activation memory: {before} -> {after} bytes")
        kinds = [type(module) for module in self.net.modules()]
        summary.gc_container_count = kinds.count(GCContainer)
        summary.tcgc_container_count = kinds.count(TCGCContainer)

    def _warm_up(self, summary: MemOptSummary) -> None:
        """Train a copy for one step, so that what is compiled at first use is compiled."""
        if not self.options.warmup_in_main_process or self.inputs is None:
            return
        devices = [t.device for t in self.net.parameters() if t.device.type == "cuda"]
        with torch.random.fork_rng(list(dict.fromkeys(devices))):
            twin = copy.deepcopy(self.net).train()
            total_of(twin(*self.inputs)).backward()
        summary.applied_steps.append("warmup")

    def _say(self, line: str) -> None:
        if self.options.verbose and line:
            print(f"snnfx memory_optimization: {line}")


_NOTHING = Selection((), (), "no_candidates", "")


def _note_nothing_was_done(summary: MemOptSummary, error: CaptureError) -> None:
    """Say, in a warning too, that the model does not run with its modules in containers."""
    reason = "model_does_not_run_with_containers"
    summary.applied_level = 0
    summary.notes.append(f"fallback:{reason}: {error}")
    summary.skipped_steps[:0] = [f"{step}:{reason}" for step in summary.applied_steps]
    summary.applied_steps.clear()
    for name in (
        *("gc_wrap_count", "spatial_split_count", "temporal_split_count", "unwrap_count"),
        *(f"{kind}_compressor_count" for kind in _KINDS),
    ):
        setattr(summary, name, 0)
    warnings.warn(
        "snnfx: the model is left as it was, since it does not run with its modules in "
        f"containers: {error}",
        SnnfxWarning,
        stacklevel=4,
    )


def _refusal(path: str, facts: StepFacts | None) -> str:
    if facts is None:
        return ""
    known = facts.modules.get(path)
    return "the step does not call it" if known is None else known.refusal


def _new_summary(options: MemOptOptions) -> MemOptSummary:
    return MemOptSummary(
        profile=options.profile,
        checkpoint_budget=options.checkpoint_budget,
        prefer=options.prefer,
        device=resolve_device(),
        requested_level=options.requested_level,
        applied_level=options.level,
        compress_x=options.compress_x,
        allow_expensive_profiling=options.allow_expensive_profiling,
        notes=list(options.notes),
        options={k: v for k, v in asdict(options).items() if k != "notes"},
    )
