"""Joint graphs: captured, planned and split.

The package can be called: it has the name of the function `snnfx.capture`, and Python gives a
package's name to the package as soon as one of its modules is imported.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _CallablePackage(ModuleType):
    """A package that is also the function `snnfx.capture.offline.capture`."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from snnfx.capture.offline import capture

        return capture(*args, **kwargs)


sys.modules[__name__].__class__ = _CallablePackage
