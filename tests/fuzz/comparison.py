"""When two tensors are equal: in every bit, or within a tolerance of their norm."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

Results = Mapping[str, Tensor | None]


def different(found: Results, expected: Results, tolerance: float) -> list[str]:
    """Which of the results differ, with by how much; a tolerance of 0 asks for the same bits."""
    if list(found) != list(expected):
        return [f"results are {list(found)}, expected {list(expected)}"]
    reasons = {k: _difference(found[k], expected[k], tolerance) for k in found}
    return [f"{name}: {reason}" for name, reason in reasons.items() if reason]


def _difference(found: Tensor | None, expected: Tensor | None, tolerance: float) -> str:
    if found is None or expected is None:
        return "" if found is expected else "one is None, the other a tensor"
    if (found.dtype, found.shape) != (expected.dtype, expected.shape):
        return f"{found.dtype} {list(found.shape)}, not {expected.dtype} {list(expected.shape)}"
    if same_bits(found, expected):
        return ""
    if not expected.is_floating_point():
        return "other numbers"
    error, size = (found.double() - expected.double()).norm(), expected.double().norm()
    # What is zero but for rounding, such as the gradient of a bias before a norm, has no digits.
    if tolerance and bool(error <= tolerance * (1 + size)):
        return ""
    return f"an error of {error.item():.3e} for a norm of {size.item():.3e}"


def same_bits(found: Tensor, expected: Tensor) -> bool:
    """Whether two tensors of one dtype and shape hold the same bits."""
    pair = [x.detach().contiguous().flatten().view(torch.uint8) for x in (found, expected)]
    return torch.equal(*pair)
