"""Every error and warning that snnfx raises, with one base class each."""

from __future__ import annotations


class SnnfxError(Exception):
    """Base class of all errors raised by snnfx."""


class OptionError(SnnfxError, ValueError):
    """A backend option, argument or environment variable has an unknown name or value."""


class ModulePathError(SnnfxError, AttributeError):
    """A model has no module at a path."""


class BudgetError(SnnfxError, ValueError):
    """No plan fits a memory budget."""


class CaptureError(SnnfxError, RuntimeError):
    """A model could not be captured as one joint forward-backward graph."""


class PackError(SnnfxError, ValueError):
    """A tensor, bit width or layout cannot be packed or unpacked."""


class RecomputationError(SnnfxError, RuntimeError):
    """A checkpointed segment cannot be computed again as it was computed first."""


class ChunkError(SnnfxError, ValueError):
    """A checkpointed sequence cannot be run in chunks of time as asked."""


class CompressionError(SnnfxError, ValueError):
    """A spike compressor cannot hold a tensor, or cannot give it back as asked."""


class KernelError(SnnfxError, RuntimeError):
    """A kernel cannot be generated, compiled or called as asked."""


class RuleError(SnnfxError, KeyError):
    """An operator has no rule in a table that requires one, or two rules collide."""


class UncountedError(SnnfxError, NotImplementedError):
    """A counter in strict mode, or an energy model, met what it has no rule for."""


class ProfilerError(SnnfxError, RuntimeError):
    """A profiler was used out of order: not bound, not entered, or entered twice."""


class RewriteError(SnnfxError, RuntimeError):
    """A graph rewrite broke an invariant that the pipeline checks."""


class PlanError(SnnfxError, ValueError):
    """A memory plan cannot be read, drawn or written as asked."""


class TargetError(SnnfxError, RuntimeError):
    """The function that builds a model for the command line cannot be found or called."""


class ExportError(SnnfxError, RuntimeError):
    """A model cannot be rewritten or exported, or a file of one cannot be loaded or called so."""


class SnnfxWarning(UserWarning):
    """Base class of all warnings: something was left as it was, and the text says why."""
