"""Memory optimisation of eager training: which modules become checkpointing containers, and how.

`memory_optimization` wraps the layers of a model in containers that keep only their inputs, packed
where the inputs are proven to be spikes, and splits and unwraps the containers by the predicted
peak of a training step. The names, defaults and fields are the documented ones of SpikingJelly's
`activation_based.memopt`; where those stand for trial runs on a GPU, a prediction from the recorded
graph of one step takes their place, and the docstring of the argument says what it does now.
"""

from snnfx.memopt.device import resolve_device
from snnfx.memopt.modules import get_module_and_parent
from snnfx.memopt.pipeline import apply_gc, memory_optimization
from snnfx.memopt.summary import (
    MEMOPT_CHECKPOINT_BUDGETS,
    MEMOPT_PREFERENCES,
    MEMOPT_PROFILES,
    MemOptSummary,
)

__all__ = [
    "MEMOPT_CHECKPOINT_BUDGETS",
    "MEMOPT_PREFERENCES",
    "MEMOPT_PROFILES",
    "MemOptSummary",
    "apply_gc",
    "get_module_and_parent",
    "memory_optimization",
    "resolve_device",
]
