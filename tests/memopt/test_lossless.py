"""Training with containers computes what training without them computes, bit for bit.

The numbers of two steps are compared, with an update of the weights between them: outputs,
gradients of parameters and inputs, buffers, neuron states, and the random state after each step.
Where containers run in chunks along time, weights' gradients are sums in another order: there the
numbers are compared in double precision, and all that has no sum in it still has the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from snnfx.checkpointing import GCContainer, TCGCContainer
from snnfx.memopt import MemOptSummary, memory_optimization

from tests.backend.harness import same_bits
from tests.memopt.nets import CASES, SPLITS
from tests.models import Workload, assert_fires

Results = dict[str, Tensor]


def states(model: nn.Module) -> Iterator[Tensor]:
    """What neurons keep, in the order of the modules; our own neurons and SpikingJelly's."""
    for module in model.modules():
        values = getattr(module, "_memories", {}) if not isinstance(module, GCContainer) else {}
        yield from (value for value in values.values() if isinstance(value, Tensor))


def train(workload: Workload) -> Results:
    """All numbers of two steps. Names of parameters are their keys in the state dict."""
    found: Results = {}
    model = workload.model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    torch.manual_seed(7)
    for step in range(2):
        optimizer.zero_grad()
        inputs = [x.detach().clone().requires_grad_() for x in workload.inputs]
        workload.before_step()
        output = model(*inputs)
        workload.loss_fn(output).backward()
        values = {
            "output": [output],
            "input gradient": [x.grad for x in inputs],
            "gradient": [p.grad for p in model.parameters()],
            "buffer": list(model.buffers()),
            "state": list(states(model)),
            "random": [torch.get_rng_state()],
        }
        found |= {
            f"{step} {kind} {i}": value.detach().clone()
            for kind, all_of_kind in values.items()
            for i, value in enumerate(all_of_kind)
            if value is not None
        }
        optimizer.step()
    return found | {f"trained {key}": value.clone() for key, value in model.state_dict().items()}


@pytest.fixture(scope="module")
def expected() -> Callable[[str], Results]:
    """The numbers of the model as it is, each computed once."""
    known: dict[str, Results] = {}

    def numbers(name: str) -> Results:
        if name not in known:
            known[name] = train(CASES[name].make())
        return known[name]

    return numbers


def close_in_double(_name: str, found: Tensor, expected: Tensor) -> bool:
    if not expected.is_floating_point():
        return torch.equal(found, expected)
    assert expected.dtype == torch.float64
    return bool((found - expected).norm() <= 1e-12 * expected.norm())


def assert_lossless(name: str, expected: Callable[[str], Results], **options: Any) -> MemOptSummary:
    """Hold that the optimised model of a case trains as the model itself does."""
    workload = CASES[name].make()
    workload.before_step()
    result = memory_optimization(
        workload.model, workload.layer_types, workload.inputs, return_summary=True, **options
    )
    assert isinstance(result, tuple)
    chunked = any(isinstance(module, TCGCContainer) for module in workload.model.modules())
    same = close_in_double if chunked else same_bits
    plain, found = expected(name), train(workload)
    assert list(found) == list(plain)
    different = [key for key in found if not same(key, found[key], plain[key])]
    assert not different, f"these differ from the plain model's: {different}"
    return result[1]


@pytest.mark.parametrize("name", CASES)
def test_cases_have_numbers_that_can_differ(name: str, expected: Callable[[str], Results]) -> None:
    workload = CASES[name].make()
    workload.before_step()
    assert_fires(workload.model, *workload.inputs)
    kinds = {kind for key, value in expected(name).items() if value.any() for kind in [key[2:14]]}
    assert {"output 0", "input gradie", "gradient 0"} <= kinds


@pytest.mark.parametrize("name", CASES)
def test_level_4_is_lossless_and_does_what_it_is_there_for(
    name: str, expected: Callable[[str], Results]
) -> None:
    summary = assert_lossless(name, expected, level=4)
    assert {split for split in SPLITS if getattr(summary, f"{split}_count")} == CASES[name].done
    assert summary.applied_level == 4


def test_each_level_has_a_case() -> None:
    assert frozenset[str]().union(*(case.done for case in CASES.values())) == set(SPLITS)


@pytest.mark.parametrize("level", [0, 1, 2, 3])
@pytest.mark.parametrize("name", CASES)
def test_levels_are_lossless(name: str, level: int, expected: Callable[[str], Results]) -> None:
    summary = assert_lossless(name, expected, level=level)
    assert (summary.gc_wrap_count > 0) == (level > 0)


@pytest.mark.parametrize("profile", ["safe", "balanced", "memory", "exhaustive"])
@pytest.mark.parametrize(
    "name", ["vgg", "sew", "spikformer", "chunks", "jelly_vgg", "jelly_layers"]
)
def test_profiles_are_lossless(name: str, profile: str, expected: Callable[[str], Results]) -> None:
    assert assert_lossless(name, expected, profile=profile).gc_wrap_count


@pytest.mark.parametrize(
    "options",
    [
        *({"checkpoint_budget": name, "level": 1} for name in ("speed", "balanced", "memory")),
        *({"prefer": name} for name in ("speed", "balanced", "memory")),
        {"compress_x": False, "level": 4},
        {"max_gc_wrapped_modules": 2, "level": 2},
        {"temporal_split_factor": 3, "level": 3},
    ],
)
@pytest.mark.parametrize("name", ["sew_blocks", "chunks", "jelly_layers"])
def test_budgets_and_preferences_are_lossless(
    name: str, options: dict[str, Any], expected: Callable[[str], Results]
) -> None:
    assert assert_lossless(name, expected, **options).gc_wrap_count


def test_chunks_change_nothing_that_is_no_sum_over_time(
    expected: Callable[[str], Results],
) -> None:
    workload = CASES["chunks"].make()
    memory_optimization(workload.model, workload.layer_types, workload.inputs, level=3)
    assert any(isinstance(module, TCGCContainer) for module in workload.model.modules())
    plain, found = expected("chunks"), train(workload)
    first = [k for k in plain if k.startswith(("0 output", "0 state", "0 input", "0 random"))]
    assert len(first) >= 5
    assert all(torch.equal(found[key], plain[key]) for key in first)
