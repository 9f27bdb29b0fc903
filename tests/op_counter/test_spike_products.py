"""Rules of linear operators equal a count, in loops, of the products that they are made of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import Tensor

from snnfx.op_counter import ACCounter, DispatchCounterMode, MACCounter, SynOpCounter

aten = torch.ops.aten
KINDS = st.sampled_from(["spikes", "reals", "halves", "bools", "zeros", "ones"])


def tensor(kind: str, *shape: int) -> Tensor:
    """Reals are neither 0 nor 1."""
    if kind == "reals":
        return torch.rand(shape) + 1.5
    if kind in ("zeros", "ones"):
        return getattr(torch, kind)(shape)
    x = torch.rand(shape) < 0.4
    return x if kind == "bools" else x.to(torch.float16 if kind == "halves" else torch.float32)


def is_spikes(x: Tensor) -> bool:
    return all(v in (0, 1) for v in x.reshape(-1).tolist())


@dataclass
class Counted:
    mac: int = 0
    ac: int = 0

    def add(self, pairs: Iterator[tuple[float, float]], left: bool, right: bool) -> None:
        """Count products; a factor of padding is None, and with a spike in it nothing."""
        for a, b in pairs:
            if not left and not right:
                self.mac += 1
            elif left and right:
                self.ac += a == 1 and b == 1
            else:
                self.ac += (a if left else b) == 1


def counted(func: Any, *args: Any, **kwargs: Any) -> Counted:
    """What the rules count; SynOps are all ACs of a linear operator."""
    out = func(*fitting(args), **kwargs)
    return counted_with(func, args, kwargs, out)


def fitting(args: Any) -> list[Any]:
    """Operands of one dtype, since products of several do not run."""
    return [x.float() if isinstance(x, Tensor) else x for x in args]


def counted_with(func: Any, args: Any, kwargs: Any, out: Any) -> Counted:
    counters = MACCounter(), ACCounter(), SynOpCounter()
    mac, ac, synops = (c.count(func, args, kwargs, out) for c in counters)
    assert ac == synops
    return Counted(mac, ac)


def matrix_pairs(x: Tensor, y: Tensor) -> Iterator[tuple[float, float]]:
    a, b = x.tolist(), y.tolist()
    for i, j, k in product(range(len(a)), range(y.shape[1]), range(len(b))):
        yield a[i][k], b[k][j]


SIZE = st.integers(1, 4)


@settings(max_examples=60, deadline=None)
@given(m=SIZE, k=SIZE, n=SIZE, left=KINDS, right=KINDS, seed=st.integers(0, 99))
def test_matrix_products(m: int, k: int, n: int, left: str, right: str, seed: int) -> None:
    torch.manual_seed(seed)
    x, y = tensor(left, m, k), tensor(right, k, n)
    expected = Counted()
    expected.add(matrix_pairs(x, y), is_spikes(x), is_spikes(y))
    assert counted(aten.mm.default, x, y) == expected
    bias = tensor("reals", m, n)
    assert counted(aten.addmm.default, bias, x, y) == expected
    assert counted(aten.addmm.default, bias, x, y, alpha=3, beta=2) == expected


@settings(max_examples=40, deadline=None)
@given(b=SIZE, m=SIZE, k=SIZE, n=SIZE, left=KINDS, right=KINDS, seed=st.integers(0, 99))
def test_products_of_batches(
    b: int, m: int, k: int, n: int, left: str, right: str, seed: int
) -> None:
    torch.manual_seed(seed)
    x, y = tensor(left, b, m, k), tensor(right, b, k, n)
    expected = Counted()
    for one, other in zip(x, y, strict=True):
        expected.add(matrix_pairs(one, other), is_spikes(x), is_spikes(y))
    assert counted(aten.bmm.default, x, y) == expected
    assert counted(aten.baddbmm.default, tensor("reals", b, m, n), x, y) == expected
    assert counted(aten.addbmm.default, tensor("reals", m, n), x, y) == expected


@settings(max_examples=40, deadline=None)
@given(m=SIZE, k=SIZE, left=KINDS, right=KINDS, seed=st.integers(0, 99))
def test_products_with_vectors(m: int, k: int, left: str, right: str, seed: int) -> None:
    torch.manual_seed(seed)
    x, v, u = tensor(left, m, k), tensor(right, k), tensor(left, m)
    expected = Counted()
    expected.add(matrix_pairs(x, v[:, None]), is_spikes(x), is_spikes(v))
    assert counted(aten.mv.default, x, v) == expected
    assert counted(aten.addmv.default, tensor("reals", m), x, v) == expected
    dot = Counted()
    dot.add(matrix_pairs(x[:1], v[:, None]), is_spikes(x[0]), is_spikes(v))
    assert counted(aten.dot.default, x[0], v) == dot
    outer = Counted()
    outer.add(matrix_pairs(u[:, None], v[None]), is_spikes(u), is_spikes(v))
    assert counted(aten.addr.default, tensor("reals", m, k), u, v) == outer


@dataclass(frozen=True)
class Case:
    """A convolution; sizes are of the grid that its input is on."""

    groups: int
    channels: tuple[int, int]
    batch: int
    sizes: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool

    @property
    def options(self) -> tuple[Any, ...]:
        zeros = (0,) * len(self.sizes)
        return (self.stride, self.padding, self.dilation, self.transposed, zeros, self.groups)

    def input(self, kind: str) -> Tensor:
        return tensor(kind, self.batch, self.groups * self.channels[0], *self.sizes)

    def weight(self, kind: str) -> Tensor:
        inner, outer = self.channels
        first, second = (inner, outer) if self.transposed else (outer, inner)
        return tensor(kind, self.groups * first, second, *self.kernel)


@st.composite
def cases(draw: Any) -> Case:
    rank = draw(st.integers(1, 3))
    each = lambda low, high: tuple(draw(st.integers(low, high)) for _ in range(rank))  # noqa: E731
    kernel, stride, dilation = each(1, 3 if rank < 3 else 2), each(1, 3), each(1, 2)
    reach = tuple(d * (k - 1) for k, d in zip(kernel, dilation, strict=True))
    transposed = draw(st.booleans())
    extra = each(1, 4 if rank < 3 else 2)
    padding = each(0, 2)
    if transposed:  # what is left of the output may not be nothing
        padding = tuple(min(p, r // 2) for p, r in zip(padding, reach, strict=True))
        sizes = extra
    else:
        sizes = tuple(r + e for r, e in zip(reach, extra, strict=True))
    channels = (draw(st.integers(1, 2)), draw(st.integers(1, 2)))
    groups, batch = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    return Case(groups, channels, batch, sizes, kernel, stride, padding, dilation, transposed)


Places = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...] | None]


def products_of(case: Case, out: Tensor) -> Iterator[Places]:
    """The places in weight, small and large tensor of each product; in the padding None."""
    small, large = (case.sizes, out.shape[2:]) if case.transposed else (out.shape[2:], case.sizes)
    inner, outer = case.channels if case.transposed else case.channels[::-1]
    loops = [range(case.groups), range(case.batch), range(inner), range(outer)]
    for group, sample, a, b in product(*loops):
        for s in product(*map(range, small)):
            for k in product(*map(range, case.kernel)):
                at = tuple(
                    i * stride - pad + j * dilation
                    for i, stride, pad, j, dilation in zip(
                        s, case.stride, case.padding, k, case.dilation, strict=True
                    )
                )
                inside = all(0 <= i < size for i, size in zip(at, large, strict=True))
                yield (
                    (group * inner + a, b, *k),
                    (sample, group * inner + a, *s),
                    (sample, group * outer + b, *at) if inside else None,
                )


def value(x: Tensor, place: tuple[int, ...] | None) -> float:
    return 0.0 if place is None else float(x[place])


def brute_force(case: Case, out: Tensor, left: Any, right: Any) -> Counted:
    """Of two of weight, small and large tensor, the others None; a spike needs its partner."""
    found = Counted()
    spiking = is_spikes(left[1]), is_spikes(right[1])

    def pairs() -> Iterator[tuple[float, float]]:
        for places in products_of(case, out):
            of = dict(zip(("weight", "small", "large"), places, strict=True))
            # Dense counts, and so spikes of the weight, take the padding as zeros.
            if spiking != (False, False) and of["large"] is None and not weight_alone(spiking):
                continue
            yield value(left[1], of[left[0]]), value(right[1], of[right[0]])

    def weight_alone(spiking: tuple[bool, bool]) -> bool:
        names = left[0], right[0]
        return [n for n, spikes in zip(names, spiking, strict=True) if spikes] == ["weight"]

    found.add(pairs(), *spiking)
    return found


@settings(max_examples=80, deadline=None)
@given(case=cases(), left=KINDS, right=KINDS, seed=st.integers(0, 99))
def test_convolutions(case: Case, left: str, right: str, seed: int) -> None:
    torch.manual_seed(seed)
    x, weight = case.input(left), case.weight(right)
    out = aten.convolution.default(x.float(), weight.float(), None, *case.options)
    expected = brute_force(
        case, out, ("small" if case.transposed else "large", x), ("weight", weight)
    )
    args = (x, weight, None, *case.options)
    assert counted_with(aten.convolution.default, args, {}, out) == expected


@settings(max_examples=60, deadline=None)
@given(case=cases(), kinds=st.tuples(KINDS, KINDS, KINDS), seed=st.integers(0, 99))
def test_gradients_of_convolutions(case: Case, kinds: tuple[str, str, str], seed: int) -> None:
    torch.manual_seed(seed)
    x, weight = case.input(kinds[0]), case.weight(kinds[1])
    out = aten.convolution.default(x.float(), weight.float(), None, *case.options)
    gradient = tensor(kinds[2], *out.shape)
    at, other = ("small", "large") if case.transposed else ("large", "small")
    of_input = brute_force(case, out, (other, gradient), ("weight", weight))
    of_weight = brute_force(case, out, (at, x), (other, gradient))
    for mask in product([False, True], repeat=2):
        args = (gradient, x, weight, None, *case.options, [*mask, False])
        outs = aten.convolution_backward.default(*fitting(args))
        assert counted_with(aten.convolution_backward.default, args, {}, outs) == Counted(
            mask[0] * of_input.mac + mask[1] * of_weight.mac,
            mask[0] * of_input.ac + mask[1] * of_weight.ac,
        )


def test_the_gradient_of_a_bias_is_a_sum_and_no_synaptic_operation() -> None:
    gradient, x, weight = (tensor("reals", *s) for s in ((2, 3, 4), (2, 1, 4), (3, 1, 1)))
    args = (gradient, x, weight, [3], [1], [0], [1], False, [0], 1, [False, False, True])
    out = aten.convolution_backward.default(*args)
    assert ACCounter().count(aten.convolution_backward.default, args, {}, out) == 2 * 3 * 4 - 3
    assert SynOpCounter().count(aten.convolution_backward.default, args, {}, out) == 0


def attention_counts(q: Tensor, k: Tensor, v: Tensor) -> Counted:
    """Both products, head by head; probabilities are no spikes."""
    found = Counted()
    p = torch.full((q.shape[2], k.shape[2]), 0.5)
    for n, h in product(range(q.shape[0]), range(q.shape[1])):
        other = h * k.shape[1] // q.shape[1]
        found.add(matrix_pairs(q[n, h], k[n, other].T), is_spikes(q), is_spikes(k))
        found.add(matrix_pairs(p, v[n, other]), False, is_spikes(v))
    return found


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.tuples(SIZE, SIZE, SIZE, SIZE),
    kinds=st.tuples(KINDS, KINDS, KINDS),
    shared=st.integers(1, 2),
    seed=st.integers(0, 99),
)
def test_attention(
    sizes: tuple[int, int, int, int], kinds: tuple[str, str, str], shared: int, seed: int
) -> None:
    torch.manual_seed(seed)
    n, length, others, width = sizes
    q = tensor(kinds[0], n, 2 * shared, length, width)
    k, v = (tensor(kind, n, 2, others, width) for kind in kinds[1:])
    forward = aten._scaled_dot_product_flash_attention_for_cpu.default
    assert counted_with(forward, (q, k, v), {}, None) == attention_counts(q, k, v)


@pytest.mark.parametrize("spiking", ["none", "q", "k", "v", "gradient"])
def test_the_gradients_of_attention_are_five_products(spiking: str) -> None:
    operands = {name: tensor("reals", 2, 3, 4, 5) for name in ("q", "k", "v", "gradient")}
    one = 2 * 3 * 4 * 4 * 5  # products of each of the five
    if spiking in operands:
        operands[spiking] = tensor("spikes", 2, 3, 4, 5)
    q, k, v, gradient = (operands[name] for name in ("q", "k", "v", "gradient"))
    call = aten._scaled_dot_product_flash_attention_for_cpu_backward.default
    found = counted_with(call, (gradient, q, k, v), {}, None)
    products = {"none": 0, "q": 2, "k": 2, "v": 1, "gradient": 2}[spiking]
    ones = int(operands[spiking].sum()) if spiking in operands else 0
    assert found == Counted((5 - products) * one, products * ones * 4)


def test_attention_runs_under_a_mode() -> None:
    q, k, v = (tensor("reals", 1, 2, 4, 8).requires_grad_() for _ in range(3))
    counter = MACCounter()
    with DispatchCounterMode([counter], strict=True):
        F.scaled_dot_product_attention(q, k, v).sum().backward()
    one = 2 * 4 * 4 * 8
    # The gradient of a sum is of ones: neither those of values nor of probabilities are MACs.
    assert counter.get_total() == 2 * one + 3 * one
