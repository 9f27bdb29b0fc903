"""Memories of module trees, and forwards with explicit state."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from spikingjelly.activation_based import base as peer
from torch import nn

from snnfx import base

from tests.stateful import Counter, Integrator

# ---------------------------------------------------------------- module trees


@st.composite
def trees(draw: st.DrawFn) -> nn.Module:
    """Random nesting in which each memory has a parameter of the same name beside it."""

    def build(depth: int) -> nn.Module:
        node = Twin() if draw(st.booleans()) else nn.Module()
        names = draw(st.lists(st.sampled_from("abc"), unique=True, max_size=3))
        for name in names if depth else []:
            node.add_module(name, build(depth - 1))
        return node

    return build(3)


class Twin(base.MemoryModule):
    def __init__(self) -> None:
        super().__init__()
        for name in ("m1", "m0"):
            self.register_memory(name, object())
            self.register_parameter(f"{name}_", nn.Parameter(torch.zeros(1)))


@given(tree=trees(), prefix=st.sampled_from(["", "net"]))
def test_memories_are_named_and_ordered_like_parameters(tree: nn.Module, prefix: str) -> None:
    twins = [name.removesuffix("_") for name, _ in tree.named_parameters(prefix=prefix)]
    named = list(base.named_memories(tree, prefix))
    assert [name for name, _ in named] == twins
    assert list(base.memories(tree)) == [value for _, value in named]
    for name, value in base.named_memories(tree):
        owner = tree.get_submodule(name.rpartition(".")[0])
        assert getattr(owner, name.rpartition(".")[2]) is value


@given(tree=trees(), data=st.data())
def test_loading_puts_each_value_where_extracting_finds_it(
    tree: nn.Module, data: st.DataObject
) -> None:
    old = base.extract_memories(tree)
    new = [object() for _ in old]
    base.load_memories(tree, new)
    assert base.extract_memories(tree) == new
    wrong = data.draw(st.integers(0, len(old) + 2).filter(lambda count: count != len(old)))
    with pytest.raises(ValueError, match=f"has {len(old)} memories, got {wrong}"):
        base.load_memories(tree, [None] * wrong)
    assert base.extract_memories(tree) == new


def test_a_shared_module_counts_once() -> None:
    shared = Counter()
    tree = nn.ModuleDict({"x": nn.Sequential(shared), "y": nn.Sequential(shared)})
    assert [name for name, _ in base.named_memories(tree)] == ["x.0.count"]


def test_names_agree_with_the_peer_framework() -> None:
    def build(cls: type[nn.Module]) -> nn.Module:
        def leaf(names: str) -> nn.Module:
            module = cls()
            for name in names:
                module.register_memory(name, name)
            return module

        root = leaf("pq")
        root.add_module("b", nn.Sequential(leaf("vu"), nn.ReLU(), leaf("w")))
        root.add_module("a", leaf("x"))
        return root

    expected = list(peer.named_memories(build(peer.MemoryModule), "net"))
    assert list(base.named_memories(build(base.MemoryModule), "net")) == expected
    assert len(expected) == 6


@pytest.mark.parametrize("function", [base.named_memories, base.memories, base.extract_memories])
def test_a_tree_beyond_the_recursion_limit_is_a_recursion_error(function: Any) -> None:
    tree: nn.Module = Counter()
    for _ in range(1500):
        tree = nn.Sequential(tree)
    with pytest.raises(RecursionError):
        list(function(tree))


# ---------------------------------------------------------------- functional forward


def test_the_functional_forward_of_the_documented_example() -> None:
    class Stateful(base.MemoryModule):
        def __init__(self) -> None:
            super().__init__()
            self.register_memory("counter", torch.tensor(0.0))
            self.linear = nn.Linear(10, 5)

        def single_step_forward(self, x: torch.Tensor) -> torch.Tensor:
            self.counter = self.counter + 1.0
            return self.linear(x)

    module = Stateful()
    x = torch.randn(3, 10)
    start = torch.tensor(6.0)
    output, new_state = base.to_functional_forward(module)(x, start)
    assert torch.equal(output, module.linear(x))
    assert torch.equal(new_state, torch.tensor(7.0))
    assert torch.equal(start, torch.tensor(6.0))
    assert torch.equal(module.counter, torch.tensor(0.0))


def test_a_functional_forward_takes_and_gives_several_values_and_keywords() -> None:
    x, y = torch.randn(2, 3)
    total = torch.randn(3)
    f = base.to_functional_forward(Integrator())
    outputs = f(x, y, total, None)
    expected = total * 0.5 + x * y
    assert len(outputs) == 4
    for got, want in zip(outputs, (expected.tanh(), x - y, expected, y), strict=True):
        assert torch.equal(got, want)
    assert torch.equal(f(x, total, "old", y=y)[2], expected)


def test_chaining_the_functional_forward_is_the_stateful_run() -> None:
    tree = nn.Sequential(Counter(), nn.Linear(3, 3), Counter(10.0))
    f = base.to_functional_forward(tree)
    states = base.extract_memories(tree)
    x_seq = torch.randn(4, 2, 3)
    functional = []
    for x in x_seq:
        output, *states = f(x, *states)
        functional.append(output)
    assert base.extract_memories(tree) == [0.0, 10.0]
    for x, output in zip(x_seq, functional, strict=True):
        assert torch.equal(tree(x), output)
    assert base.extract_memories(tree) == states == [4.0, 14.0]


def test_a_functional_forward_carries_gradients_of_its_states() -> None:
    f = base.to_functional_forward(Integrator())
    x, y, total = (torch.randn(3, dtype=torch.float64, requires_grad=True) for _ in range(3))
    assert torch.autograd.gradcheck(lambda *args: f(*args, None)[:3], (x, y, total))


def test_without_state_the_forward_itself_comes_back() -> None:
    module = nn.Linear(2, 2)
    assert base.to_functional_forward(module) == module.forward
    assert base.to_functional_forward(module, torch.relu) is torch.relu


def test_another_forward_function_can_be_made_functional() -> None:
    class Doubled(Counter):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return 2 * super().forward(*args, **kwargs)

    module = Doubled()
    parent = super(Doubled, module).forward
    x = torch.ones(2)
    doubled, _ = base.to_functional_forward(module)(x, 4.0)
    plain, count = base.to_functional_forward(module, parent)(x, 4.0)
    assert torch.equal(plain, x * 2.0 * 5.0)
    assert torch.equal(doubled, 2 * plain)
    assert count == 5.0


def test_an_error_in_a_functional_forward_leaves_the_state_alone() -> None:
    module = Counter(2.0)
    with pytest.raises(TypeError):
        base.to_functional_forward(module)("not a tensor", 50.0)
    assert module.count == 2.0


def test_too_few_states_are_refused() -> None:
    tree = nn.Sequential(Counter(), nn.Sequential(nn.Linear(2, 2), Counter()), Integrator())
    f = base.to_functional_forward(tree)
    with pytest.raises(ValueError, match="4 memories, got 2"):
        f(torch.ones(2), 0.0)
