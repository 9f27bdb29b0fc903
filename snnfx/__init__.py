"""snnfx: train spiking neural networks in a fraction of the memory.

``torch.compile(model, backend="snnmem")`` needs no import of this package. Names are loaded when
they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from snnfx.backend import last_plan
    from snnfx.capture.offline import Capture, capture, plan
    from snnfx.errors import SnnfxError, SnnfxWarning
    from snnfx.exporting.archive import export, load
    from snnfx.exporting.module import RewrittenModule
    from snnfx.exporting.rewriting import rewrite
    from snnfx.memopt import (
        MEMOPT_PROFILES,
        MemOptSummary,
        apply_gc,
        get_module_and_parent,
        memory_optimization,
        resolve_device,
    )
    from snnfx.passes.plan.memory_plan import MemoryPlan

__version__ = "0.1.0"

_HOMES = {
    "Capture": "snnfx.capture.offline",
    "MEMOPT_PROFILES": "snnfx.memopt",
    "MemOptSummary": "snnfx.memopt",
    "MemoryPlan": "snnfx.passes.plan.memory_plan",
    "RewrittenModule": "snnfx.exporting.module",
    "SnnfxError": "snnfx.errors",
    "SnnfxWarning": "snnfx.errors",
    "apply_gc": "snnfx.memopt",
    "capture": "snnfx.capture.offline",
    "export": "snnfx.exporting.archive",
    "get_module_and_parent": "snnfx.memopt",
    "last_plan": "snnfx.backend",
    "load": "snnfx.exporting.archive",
    "memory_optimization": "snnfx.memopt",
    "plan": "snnfx.capture.offline",
    "resolve_device": "snnfx.memopt",
    "rewrite": "snnfx.exporting.rewriting",
}

__all__ = [
    "MEMOPT_PROFILES",
    "Capture",
    "MemOptSummary",
    "MemoryPlan",
    "RewrittenModule",
    "SnnfxError",
    "SnnfxWarning",
    "apply_gc",
    "capture",
    "export",
    "get_module_and_parent",
    "last_plan",
    "load",
    "memory_optimization",
    "plan",
    "resolve_device",
    "rewrite",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'snnfx' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted((*globals(), *__all__))
