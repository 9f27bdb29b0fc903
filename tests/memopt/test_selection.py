"""Which modules are wrapped, in what order, and what the user is told about it."""

from __future__ import annotations

import dataclasses
import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from snnfx.errors import OptionError
from snnfx.memopt.options import resolve_options
from snnfx.memopt.selection import Selection, recommendation, select_modules


class Layer(nn.Module):
    """What is wrapped; holds other modules under numbers."""

    def __init__(self, *inner: nn.Module) -> None:
        super().__init__()
        for index, module in enumerate(inner):
            self.add_module(str(index), module)


class Other(Layer):
    """Also wrapped, by the name of its base class."""


class Group(nn.Sequential):
    """Never wrapped."""


class Container(nn.Sequential):
    """An existing container."""


SIZES = {"0": 10, "1": 30, "2": 20, "3": 30}


def four_layers() -> nn.Module:
    return Group(Layer(), Layer(), Layer(), Layer())


def trees(depth: int = 3) -> st.SearchStrategy[nn.Module]:
    """Random module trees, in which a module may be registered at two places."""
    kinds = st.sampled_from([Layer, Other, Group, Container])
    inner: st.SearchStrategy[list[nn.Module]] = st.just([])
    if depth:
        children = st.lists(trees(depth - 1), max_size=3)
        inner = st.tuples(children, st.sampled_from(["", "before", "after"])).map(shared)
    return st.builds(lambda kind, modules: kind(*modules), kinds, inner)


def shared(drawn: tuple[list[nn.Module], str]) -> list[nn.Module]:
    """The modules, and before or after them what lies inside of the first one once more."""
    modules, place = drawn
    again = list(modules[0].children()) if modules else []
    return {"before": [*again, *modules], "after": [*modules, *again], "": modules}[place]


nets = st.builds(lambda group: Group(group), trees(4))
counts = st.none() | st.integers(0, 5)
ratios = st.none() | st.floats(0, 1, exclude_min=True)


def above(path: str) -> list[str]:
    """The paths of all modules that the module at `path` lies in, but the root."""
    parts = path.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]


def paths_by_module(net: nn.Module) -> dict[nn.Module, list[str]]:
    paths: dict[nn.Module, list[str]] = {}
    for path, module in net.named_modules(remove_duplicate=False):
        paths.setdefault(module, []).append(path)
    return paths


@given(nets)
def test_candidates_are_the_outermost_instances_outside_of_containers(net: nn.Module) -> None:
    chosen = select_modules(net, Layer, skip=(Container,))
    expected = [
        paths[0]
        for module, paths in paths_by_module(net).items()
        if isinstance(module, Layer)
        and not any(
            isinstance(net.get_submodule(outer), Layer | Container)
            for path in paths
            for outer in above(path)
        )
    ]
    assert list(chosen.candidates) == expected
    assert chosen.selected == chosen.candidates


def test_a_shared_module_is_left_to_the_one_around_it_wherever_it_comes_first() -> None:
    part = Layer()
    assert select_modules(Group(part, Layer(part)), Layer).candidates == ("1",)
    assert select_modules(Group(Layer(part), part), Layer).candidates == ("0",)
    assert select_modules(Group(part, part), Layer).candidates == ("0",)


@given(nets, st.sampled_from([Layer, Other, (Other, Container)]))
def test_no_candidate_lies_in_another(net: nn.Module, instance: type[nn.Module]) -> None:
    candidates = select_modules(net, instance).candidates
    modules = [net.get_submodule(path) for path in candidates]
    inside = [inner for module in modules for inner in module.modules() if inner is not module]
    assert len(set(modules)) == len(modules)
    assert not set(inside) & set(modules)


@given(nets, counts, ratios, st.none() | st.integers(0, 2**31))
def test_limits_hold_and_the_largest_come_first(
    net: nn.Module, max_modules: int | None, ratio: float | None, seed: int | None
) -> None:
    candidates, sizes_from = select_modules(net, Layer).candidates, random.Random(seed)
    sizes = None if seed is None else {p: sizes_from.randrange(5) for p in candidates[:-1]}
    chosen = select_modules(net, Layer, max_modules, ratio, sizes)
    total = len(candidates)
    allowed = [total, *([] if max_modules is None else [max_modules])]
    if ratio is not None:
        # A ratio on the verge of a whole number may count as that number.
        assert len(chosen.selected) <= max(1, math.ceil(total * ratio))
        allowed.append(max(1, math.ceil(total * ratio - 1e-9)))
    assert len(chosen.selected) == min(allowed)
    assert chosen.candidates == candidates
    assert list(chosen.selected) == [path for path in candidates if path in chosen.selected]
    dropped = [path for path in candidates if path not in chosen.selected]
    if sizes is not None and dropped and chosen.selected:
        smallest = min(sizes.get(path, 0) for path in chosen.selected)
        assert smallest >= max(sizes.get(path, 0) for path in dropped)


@pytest.mark.parametrize(
    ("given", "selected", "policy"),
    [
        ({}, ("0", "1", "2", "3"), "all_candidates"),
        ({"input_bytes": SIZES}, ("0", "1", "2", "3"), "all_candidates"),
        ({"max_modules": 0, "ratio": 0.5}, (), "explicit_zero_budget"),
        ({"max_modules": 4}, ("0", "1", "2", "3"), "budget_covers_all"),
        ({"ratio": 0.76}, ("0", "1", "2", "3"), "budget_covers_all"),
        ({"max_modules": 2}, ("0", "1"), "fallback_module_order"),
        ({"ratio": 0.01}, ("0",), "fallback_module_order"),
        ({"max_modules": 1, "input_bytes": SIZES}, ("1",), "largest_input_activations"),
        ({"max_modules": 3, "input_bytes": SIZES}, ("1", "2", "3"), "largest_input_activations"),
        ({"max_modules": 3, "input_bytes": {"3": 1}}, ("0", "1", "3"), "largest_input_activations"),
        ({"max_modules": 3, "ratio": 0.5}, ("0", "1"), "fallback_module_order"),
        ({"max_modules": 1, "ratio": 0.5}, ("0",), "fallback_module_order"),
    ],
)
def test_a_limit_takes_the_largest_inputs_or_else_the_first_modules(
    given: dict[str, Any], selected: tuple[str, ...], policy: str
) -> None:
    chosen = select_modules(four_layers(), Layer, **given)
    assert (chosen.selected, chosen.policy) == (selected, policy)


def test_a_ratio_is_taken_as_written() -> None:
    net = Group(*(Layer() for _ in range(100)))
    assert math.ceil(0.07 * 100) == 8
    assert len(select_modules(net, Layer, ratio=0.07).selected) == 7


@pytest.mark.parametrize("given", [{}, {"max_modules": 0}, {"ratio": 0.5, "input_bytes": {}}])
def test_without_candidates_nothing_is_selected(given: dict[str, Any]) -> None:
    chosen = select_modules(Group(nn.ReLU()), Layer, **given)
    assert (chosen.candidates, chosen.selected, chosen.policy) == ((), (), "no_candidates")


def test_a_container_that_is_an_instance_itself_is_left_alone() -> None:
    net = Group(Container(nn.ReLU()), nn.Sequential(nn.ReLU()))
    assert select_modules(net[0], nn.Sequential, skip=(Container,)).candidates == ()
    holder = nn.Module()
    holder.net = net[0]
    holder.more = net[1]
    assert select_modules(holder, nn.Sequential, skip=(Container,)).candidates == ("more",)


def test_the_model_itself_cannot_be_wrapped() -> None:
    with pytest.raises(OptionError, match=r"the model itself is a Other.*nn\.Sequential\(net\)"):
        select_modules(Other(Layer()), (Layer, nn.ReLU))


@pytest.mark.parametrize("instance", [[Layer], "Layer", (Layer, "Other"), Layer()])
def test_what_is_no_class_is_an_error(instance: Any) -> None:
    with pytest.raises(OptionError, match="a class of modules or a tuple of classes"):
        select_modules(four_layers(), instance)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            {"max_modules": 1},
            "1 of 4 matching modules is wrapped: the first ones in module order, ",
        ),
        ({"max_modules": 2}, "no dummy_input was available"),
        ({"max_modules": 2, "input_bytes": SIZES}, "largest observed input activations"),
        ({"max_modules": 0}, "max_gc_wrapped_modules=0: 0 of 4"),
        ({"max_modules": 9}, "covers all"),
        ({}, "4 of 4 matching modules are wrapped"),
    ],
)
def test_the_explanation_says_how_many_and_why(given: dict[str, Any], expected: str) -> None:
    assert expected in select_modules(four_layers(), Layer, **given).explanation


@pytest.mark.parametrize(
    ("prefer", "expected"),
    [
        ("speed", "favor training speed"),
        ("memory", "favor memory savings"),
        ("balanced", "balanced"),
        (None, "balanced"),
    ],
)
def test_the_recommendation_says_what_is_favoured(prefer: str | None, expected: str) -> None:
    options = resolve_options(has_dummy_input=True, prefer=prefer)
    assert expected in recommendation(options, select_modules(four_layers(), Layer))


@pytest.mark.parametrize(
    ("level", "max_modules", "expected"),
    [
        (0, None, "level=1 or more"),
        (1, None, "try level=2 with a dummy_input"),
        (3, None, "try level=4"),
        (4, 2, "checkpoint_budget='memory'"),
        (4, None, "backend='snnmem'"),
    ],
)
def test_the_recommendation_names_the_next_step(
    level: int, max_modules: int | None, expected: str
) -> None:
    options = resolve_options(has_dummy_input=True, level=level)
    assert expected in recommendation(options, select_modules(four_layers(), Layer, max_modules))


def test_the_recommendation_names_what_was_missing() -> None:
    options = resolve_options(has_dummy_input=False, profile="memory")
    chosen = select_modules(four_layers(), Layer)
    assert "Pass dummy_input to reach level=3" in recommendation(options, chosen)
    nothing = select_modules(four_layers(), nn.GELU)
    assert "`instance`" in recommendation(options, nothing)


def test_a_selection_cannot_be_changed() -> None:
    chosen: Selection = select_modules(four_layers(), Layer)
    with pytest.raises(dataclasses.FrozenInstanceError):
        chosen.selected = ()  # pyright: ignore[reportAttributeAccessIssue]
