"""Stands in for torchvision, which cannot be imported beside the CPU build of torch.

SpikingJelly's model files import one function of it, which downloads weights.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from types import ModuleType
from typing import Any

PARENT = "torchvision"
HOME = "torchvision.models.utils"


def stand_in_for_torchvision() -> None:
    """Let ``from torchvision.models.utils import load_state_dict_from_url`` work."""
    if PARENT in sys.modules or find_spec(PARENT) is not None:
        return
    parent, models, utils = (ModuleType(name) for name in (PARENT, "torchvision.models", HOME))
    utils.__dict__["load_state_dict_from_url"] = _cannot_download
    models.__dict__["utils"], parent.__dict__["models"] = utils, models
    for module in (parent, models, utils):
        sys.modules[module.__name__] = module


def _cannot_download(*args: Any, **kwargs: Any) -> Any:
    raise NotImplementedError("the networks here have random weights: none are downloaded")
