"""FLOPs and bytes of each operator are those of SpikingJelly's counters, but for corrections.

Every call that a network makes, forward and backward, is handed to our rule and to theirs. What
differs is corrected here by its own formula, operator by operator.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import op_counter as peer
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from snnfx.op_counter import BaseCounter, FlopCounter, MemoryAccessCounter

from tests.op_counter.nets import BUILDERS, build

aten = torch.ops.aten
Correction = Callable[[Any, Any], int]


def nbytes(*values: Any) -> int:
    return sum(x.numel() * x.element_size() for x in values if isinstance(x, Tensor))


def groups_counted_again(args: Any, out: Any) -> int:
    """The peer's weight gradient is that of a convolution of one group."""
    if not args[10][1]:
        return 0
    gradient, x, weight, groups = args[0], args[1], args[2], args[9]
    positions = x if args[7] else gradient
    products = 2 * positions.numel() // positions.shape[1] * weight.numel()
    return products * (1 - groups)


FLOP_CORRECTIONS: dict[Any, Correction] = {
    aten.convolution_backward.default: groups_counted_again,
}
BYTE_CORRECTIONS: dict[Any, Correction] = {
    aten.native_batch_norm.default: lambda args, out: nbytes(*args[3:5]) if args[5] else 0,
    aten.native_batch_norm_backward.default: lambda args, out: nbytes(*out),
    aten.max_pool2d_with_indices_backward.default: lambda args, out: (
        nbytes(args[7]) - nbytes(args[1])
    ),
    aten._scaled_dot_product_flash_attention_for_cpu.default: lambda args, out: nbytes(out[1]),
    aten._scaled_dot_product_flash_attention_for_cpu_backward.default: lambda args, out: nbytes(
        *args[4:6]
    ),
}


class Comparison(TorchDispatchMode):
    """Runs each operator and keeps calls of which the two counts differ."""

    def __init__(self, ours: BaseCounter, theirs: Any, corrections: dict[Any, Correction]) -> None:
        super().__init__()
        self.ours, self.theirs, self.corrections = ours, theirs, corrections
        self.compared: set[Any] = set()
        self.differing: list[tuple[Any, int, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if self.theirs.has_rule(func):
            theirs = self.theirs.count(func, args, kwargs, out)
            theirs += self.corrections.get(func, lambda args, out: 0)(args, out)
            ours = self.ours.count(func, args, kwargs, out)
            self.compared.add(func)
            if ours != theirs:
                self.differing.append((func, ours, theirs))
        return out


def compare(run: Callable[[], Any]) -> set[Any]:
    """Hold both counters to the peer's; the operators that were compared."""
    flops = Comparison(FlopCounter(), peer.FlopCounter(), FLOP_CORRECTIONS)
    accesses = Comparison(MemoryAccessCounter(), peer.MemoryAccessCounter(), BYTE_CORRECTIONS)
    with flops, accesses:
        run()
    assert flops.differing == []
    assert accesses.differing == []
    assert flops.compared == accesses.compared
    return flops.compared


@pytest.mark.parametrize("name", BUILDERS)
def test_each_operator_of_a_training_step_counts_as_much_as_the_peers(name: str) -> None:
    net = build(name)
    net.forward()
    assert {aten.mm.default, aten.sum.dim_IntList} <= compare(net.step)


LAYERS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "grouped convolution": lambda: (nn.Conv2d(4, 6, 3, groups=2), torch.rand(2, 4, 8, 8)),
    "depthwise": lambda: (nn.Conv2d(4, 8, 3, groups=4, stride=2), torch.rand(2, 4, 8, 8)),
    "dilated, no bias": lambda: (nn.Conv1d(4, 6, 3, dilation=2, bias=False), torch.rand(2, 4, 9)),
    "3D": lambda: (nn.Conv3d(2, 3, 2, padding=1), torch.rand(2, 2, 4, 4, 4)),
    "transposed": lambda: (nn.ConvTranspose2d(4, 6, 3, 2, groups=2), torch.rand(2, 4, 5, 5)),
    "transposed 3D": lambda: (nn.ConvTranspose3d(2, 3, 2), torch.rand(2, 2, 4, 4, 4)),
    "average pooling": lambda: (nn.AvgPool2d(2, 1), torch.rand(2, 4, 8, 8)),
    "max-pooling": lambda: (nn.MaxPool2d(3, 1, padding=1), torch.rand(2, 4, 8, 8)),
    "global pooling": lambda: (nn.AdaptiveAvgPool2d(1), torch.rand(2, 4, 8, 8)),
    "batch norm": lambda: (nn.BatchNorm2d(4), torch.rand(2, 4, 8, 8)),
    "batch norm of vectors": lambda: (nn.BatchNorm1d(4), torch.rand(8, 4)),
    "attention": lambda: (nn.MultiheadAttention(8, 2), torch.rand(5, 2, 8)),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_each_operator_of_a_layer_counts_as_much_as_the_peers(name: str) -> None:
    module, x = LAYERS[name]()
    x.requires_grad_()

    def step() -> None:
        out = module(x, x, x)[0] if isinstance(module, nn.MultiheadAttention) else module(x)
        (out * torch.rand_like(out)).sum().backward()

    assert compare(step)


def test_fused_attention_counts_as_much_as_the_peers_and_its_row_sums() -> None:
    query, key, value = (torch.rand(2, 2, n, 4, requires_grad=True) for n in (5, 3, 3))
    mask = torch.zeros(5, 3)
    compared = compare(lambda: F.scaled_dot_product_attention(query, key, value).sum().backward())
    masked = compare(lambda: F.scaled_dot_product_attention(query, key, value, mask).sum())
    forward = aten._scaled_dot_product_flash_attention_for_cpu.default
    assert forward in compared & masked


ARITHMETIC: list[Callable[[Tensor, Tensor], Any]] = [
    lambda x, y: torch.add(x, y, alpha=2), lambda x, y: x.sub_(y, alpha=0.5),
    lambda x, y: torch.ops.aten.add.Scalar(x, 2), lambda x, y: x.neg_(), lambda x, y: x.mul_(2),
    lambda x, y: x.div_(y), lambda x, y: x / 3, lambda x, y: x.sigmoid_(), lambda x, y: x.clone(),
    lambda x, y: x.eq(y) | x.ne(2), lambda x, y: (x < y).logical_and(x <= 1),
    lambda x, y: x.gt(y).logical_xor(x >= 0), lambda x, y: torch.stack([x, x]).unbind(0),
    lambda x, y: x.double().sum(0), lambda x, y: x.mean(1), lambda x, y: torch.full_like(x, 2),
    lambda x, y: 1 - x, lambda x, y: torch.addmm(y, x, x.t(), beta=0, alpha=2),
    lambda x, y: torch.baddbmm(y, x[None], x.t()[None], beta=3),
    lambda x, y: x[0].unsqueeze(0).squeeze(0).expand(2, 4),
]  # fmt: skip


@pytest.mark.parametrize("run", ARITHMETIC)
def test_arithmetic_counts_as_much_as_the_peers(run: Callable[[Tensor, Tensor], Any]) -> None:
    assert compare(lambda: run(torch.rand(4, 4), torch.rand(4)))
