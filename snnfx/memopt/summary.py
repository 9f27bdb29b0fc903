"""What `memory_optimization` reports, and the names of its presets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

MEMOPT_PROFILES = ("safe", "balanced", "memory", "exhaustive")
"""The presets of `memory_optimization`, from the one that changes least to the longest search."""

MEMOPT_CHECKPOINT_BUDGETS = ("speed", "balanced", "memory")
"""How large a part of the matching modules is wrapped: half, three quarters, all."""

MEMOPT_PREFERENCES = ("speed", "balanced", "memory")
"""What to favour where neither a profile nor a checkpoint budget is given."""


@dataclass
class MemOptSummary:
    """What one run of `memory_optimization` was asked for, did, and left out.

    Attributes:
        profile: one of `MEMOPT_PROFILES` that was in force, given or through `prefer`, or None.
        checkpoint_budget: one of `MEMOPT_CHECKPOINT_BUDGETS`, given or through `prefer`, or None.
        prefer: one of `MEMOPT_PREFERENCES`, as given, or None.
        device: the device of this process, such as ``"cpu"`` or ``"cuda:0"``.
        requested_level: the level asked for, by argument or profile, 0 to 4.
        applied_level: the level in effect, 0 to 4; lower where something that it needs is missing.
        compress_x: whether the inputs of containers may be compressed.
        allow_expensive_profiling: whether the search for splits may take more than one round.
        applied_steps: the steps that were taken, in order.
        skipped_steps: the steps that were not taken, each with its reason.
        notes: how the arguments were resolved, and remarks on the result.
        gc_wrap_count: modules wrapped at level 1.
        manual_compressor_count: wrapped modules with a compressor that the user had set on them.
        bit_compressor_count: wrapped modules whose input is packed to bits, proven lossless.
        null_compressor_count: wrapped modules whose input is kept as it is.
        spatial_split_count: containers split into a chain of smaller ones.
        temporal_split_count: splits along time: new temporally chunked containers, and those given
            more chunks.
        unwrap_count: containers taken away again, since the peak does not need them.
        gc_container_count: containers in the result, those chunked along time left out.
        tcgc_container_count: containers in the result that are chunked along time.
        options: every argument as resolved, by name.
        gc_candidate_count: modules that could have been wrapped.
        gc_selected_count: modules chosen among them.
        gc_selection_policy: how they were chosen, in one word.
        gc_selected_modules: their paths in the given model, in the order of `named_modules`.
        gc_selection_explanation: how they were chosen, in a sentence.
        recommendation: what the setting favours, and what to try next.
    """

    profile: str | None
    checkpoint_budget: str | None
    prefer: str | None
    device: str
    requested_level: int
    applied_level: int
    compress_x: bool
    allow_expensive_profiling: bool
    applied_steps: list[str] = field(default_factory=list[str])
    skipped_steps: list[str] = field(default_factory=list[str])
    notes: list[str] = field(default_factory=list[str])
    gc_wrap_count: int = 0
    manual_compressor_count: int = 0
    bit_compressor_count: int = 0
    null_compressor_count: int = 0
    spatial_split_count: int = 0
    temporal_split_count: int = 0
    unwrap_count: int = 0
    gc_container_count: int = 0
    tcgc_container_count: int = 0
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    gc_candidate_count: int = 0
    gc_selected_count: int = 0
    gc_selection_policy: str = "all_candidates"
    gc_selected_modules: list[str] = field(default_factory=list[str])
    gc_selection_explanation: str = ""
    recommendation: str = ""
