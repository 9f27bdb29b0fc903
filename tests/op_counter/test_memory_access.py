"""Bytes: what rules count, and where they correct SpikingJelly's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import op_counter as peer
from torch import Tensor, nn

from snnfx.op_counter import DispatchCounterMode, FlopCounter, MemoryAccessCounter

aten = torch.ops.aten


def bytes_of(run: Callable[..., Any], *args: Any) -> int:
    """What counts, with no operator left out."""
    counter = MemoryAccessCounter()
    with DispatchCounterMode([counter], strict=True):
        run(*args)
    return counter.get_total()


def peers(func: Any, *args: Any) -> int:
    """What SpikingJelly counts."""
    return peer.MemoryAccessCounter().count(func, args, {}, func(*args))


def test_both_counters_know_the_same_operators() -> None:
    assert FlopCounter().rules.keys() == MemoryAccessCounter().rules.keys()


def test_views_touch_nothing() -> None:
    x = torch.rand(4, 6)
    views: list[Callable[[], Any]] = [
        lambda: x.view(2, 12), lambda: x.t(), lambda: x[0], lambda: x[:, 1:3], lambda: x.unbind(),
        lambda: x.split(2), lambda: x.expand(3, 4, 6), lambda: x.permute(1, 0)[None].squeeze(0),
        lambda: x.detach(), lambda: torch.empty(4), lambda: x.flatten(), lambda: x.unfold(0, 2, 1),
    ]  # fmt: skip
    assert [bytes_of(view) for view in views] == [0] * len(views)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int8])
def test_operands_are_read_and_results_written_in_their_dtype(dtype: torch.dtype) -> None:
    x, y = torch.ones(4, 6, dtype=dtype), torch.ones(6, dtype=dtype)
    assert bytes_of(torch.add, x, y) == (24 + 6 + 24) * dtype.itemsize
    assert bytes_of(lambda: x.add_(y)) == (24 + 6 + 24) * dtype.itemsize
    assert bytes_of(lambda: x > y) == (24 + 6) * dtype.itemsize + 24
    assert bytes_of(lambda: torch.add(x, y, out=torch.empty_like(x))) == 54 * dtype.itemsize


def test_what_is_filled_is_not_read() -> None:
    x = torch.rand(5)
    assert bytes_of(lambda: x.zero_()) == bytes_of(lambda: x.fill_(1)) == 20
    assert bytes_of(lambda: torch.zeros_like(x)) == bytes_of(lambda: x.bernoulli_(0.5)) == 20
    assert bytes_of(lambda: x.copy_(torch.ones(()))) == 20 + 4 + 4  # and ones that writes 4
    assert bytes_of(lambda: torch._foreach_zero_([x, x])) == 40


def test_of_a_table_only_the_rows_that_are_taken_are_read() -> None:
    table, rows = torch.rand(100, 4), torch.tensor([1, 2, 3])
    taken = 3 * 4 * 4
    assert bytes_of(lambda: F.embedding(rows, table)) == 3 * 8 + 2 * taken
    assert bytes_of(lambda: table[rows]) == 3 * 8 + 2 * taken
    assert bytes_of(lambda: table.index_select(0, rows)) == 3 * 8 + 2 * taken


def test_of_a_table_only_the_places_that_are_given_are_written() -> None:
    table, rows, values = torch.rand(100, 4), torch.tensor([1, 2, 3]), torch.rand(3, 4)
    moved = 3 * 4 * 4
    assert bytes_of(lambda: table.index_put_((rows,), values)) == 3 * 8 + 2 * moved
    assert bytes_of(lambda: table.index_put_((rows,), values, True)) == 3 * 8 + 3 * moved
    assert bytes_of(lambda: table.index_add_(0, rows, values)) == 3 * 8 + 3 * moved
    assert bytes_of(lambda: table.index_copy_(0, rows, values)) == 3 * 8 + 2 * moved
    places = rows[:, None].expand(3, 4)
    of_places = 8 * 3 * 4
    assert bytes_of(lambda: table.scatter_(0, places, values)) == of_places + 2 * moved
    assert bytes_of(lambda: table.scatter_add_(0, places, values)) == of_places + 3 * moved
    assert bytes_of(lambda: table.scatter_(0, places, 1.0)) == of_places + moved
    assert bytes_of(lambda: table.index_fill_(0, rows, 1.0)) == 3 * 8 + moved
    whole = 2 * 100 * 4 * 4
    assert bytes_of(lambda: table.index_put((rows,), values)) == 3 * 8 + moved + whole


def test_gradients_that_are_not_asked_for_move_nothing() -> None:
    gradient, x, weight = torch.rand(2, 3, 3, 3), torch.rand(2, 1, 5, 5), torch.rand(3, 1, 3, 3)
    sizes = 4 * gradient.numel(), 4 * x.numel(), 4 * weight.numel()
    args = (gradient, x, weight, [3], [1, 1], [0, 0], [1, 1], False, [0, 0], 1)
    expected = {0: sum(sizes), 1: sum(sizes), 2: sizes[0] + 4 * 3}
    for asked, size in expected.items():
        mask = [asked == i for i in range(3)]
        assert bytes_of(aten.convolution_backward.default, *args, mask) == size


def test_a_step_of_sgd_reads_gradients_and_rewrites_parameters() -> None:
    parameter = nn.Parameter(torch.rand(7))
    parameter.grad = torch.rand(7)
    optimizer = torch.optim.SGD([parameter], 0.1, momentum=0.9, fused=True)
    first = bytes_of(optimizer.step)
    assert first == 4 * 7 * (2 + 1 + 1)
    assert bytes_of(optimizer.step) == 4 * 7 * (2 + 1 + 2)


# ---- corrections -------------------------------------------------------------------------------


def test_max_pooling_reads_its_indices_in_the_backward_and_not_its_input() -> None:
    x = torch.rand(1, 1, 6, 6)
    out, indices = aten.max_pool2d_with_indices(x, [2, 2], [2, 2])
    args = (torch.ones_like(out), x, [2, 2], [2, 2], [0, 0], [1, 1], False, indices)
    func = aten.max_pool2d_with_indices_backward.default
    assert bytes_of(func, *args) == 4 * 9 + 8 * 9 + 4 * 36
    assert peers(func, *args) == 4 * 9 + 4 * 36 + 4 * 36


def test_a_training_batch_norm_writes_its_running_statistics() -> None:
    x, weight, bias, mean, var = torch.rand(2, 3, 4, 4), *torch.ones(4, 3)
    func = aten.native_batch_norm.default
    for training in (True, False):
        args = (x, weight, bias, mean, var, training, 0.1, 1e-5)
        written = 4 * (96 + (2 * 3 + 2 * 3 if training else 0))
        counted = bytes_of(func, *args)
        assert counted == 4 * (96 + 4 * 3) + written
        assert counted - peers(func, *args) == (4 * 2 * 3 if training else 0)


@pytest.mark.parametrize("training", [True, False])
def test_the_backward_of_a_batch_norm_writes_what_it_is_asked_for(training: bool) -> None:
    x, weight, mean, var = torch.rand(2, 3, 4, 4), *torch.ones(3, 3)
    none = torch.empty(0)
    saved: tuple[Tensor, Tensor] = (mean, var) if training else (none, none)
    func = aten.native_batch_norm_backward.default
    n, c = 4 * 96, 4 * 3
    read = {
        (True, True, True): 2 * n + 3 * c,
        (True, False, False): 2 * n + 3 * c if training else n + 2 * c,
        (False, True, False): 2 * n + 2 * c,
        (False, False, True): n,
    }
    written = {
        (True, True, True): n + 2 * c, (True, False, False): n,
        (False, True, False): c, (False, False, True): c,
    }  # fmt: skip
    for mask, size in read.items():
        args = (x, x, weight, mean, var, *saved, training, 1e-5, list(mask))
        # the statistics that are in use: the peer takes those that are empty in inference
        in_use = 0 if training else c * ((mask[0] or mask[1]) + mask[1])
        counted = bytes_of(func, *args)
        assert counted == size + written[mask]
        assert counted - peers(func, *args) == written[mask] + in_use


def test_a_negation_of_truth_reads_one_operand() -> None:
    x = torch.rand(4) > 0.5
    assert bytes_of(aten.logical_not.default, x) == 4 + 4
    with pytest.raises(ValueError, match="unpack"):
        peers(aten.logical_not.default, x)


def test_attention_moves_its_row_sums() -> None:
    query, key, value = torch.rand(3, 2, 3, 5, 4)
    func = aten._scaled_dot_product_flash_attention_for_cpu.default
    out, sums = func(query, key, value)
    each = 4 * query.numel()
    assert bytes_of(func, query, key, value) == 4 * each + 4 * sums.numel()
    backward = aten._scaled_dot_product_flash_attention_for_cpu_backward.default
    args = (torch.ones_like(out), query, key, value, out, sums, 0.0, False)
    assert bytes_of(backward, *args) == 5 * each + 4 * sums.numel() + 3 * each
