"""What `memory_optimization` and `apply_gc` put into a model, and what they say of it."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from spikingjelly.activation_based import functional, neuron
from torch import Tensor, nn

from snnfx.checkpointing import GCContainer, TCGCContainer
from snnfx.compressors import (
    BitSpikeCompressor,
    GridSpikeCompressor,
    NullSpikeCompressor,
    Uint8SpikeCompressor,
)
from snnfx.errors import OptionError
from snnfx.memopt import MemOptSummary, apply_gc, memory_optimization
from snnfx.neurons import LIFNode

from examples.models import SpikingLayer
from tests.memopt.nets import CASES, LinearLayer
from tests.models import Workload, sew_small, vgg_small


def optimised(workload: Workload, **options: Any) -> MemOptSummary:
    workload.before_step()
    types = workload.layer_types or (SpikingLayer,)
    result = memory_optimization(
        workload.model, types, workload.inputs, return_summary=True, **options
    )
    assert isinstance(result, tuple)
    assert result[0] is workload.model
    return result[1]


def containers(model: nn.Module) -> dict[str, GCContainer]:
    """By the path that the module inside had before."""
    found = {k: m for k, m in model.named_modules() if isinstance(m, GCContainer)}
    return {path.replace(".0.neuron", ".neuron"): m for path, m in found.items()}


def described(model: nn.Module) -> list[tuple[str, str, str]]:
    return [(path, repr(type(m)), m.extra_repr()) for path, m in containers(model).items()]


def last_peak(summary: MemOptSummary) -> tuple[int, int]:
    (note,) = (n for n in summary.notes if n.startswith("predicted_peak_bytes:"))
    before, after = note.removeprefix("predicted_peak_bytes:").split("->")
    return int(before), int(after)


@pytest.mark.parametrize("level", range(5))
@pytest.mark.parametrize("name", ["vgg", "chunks", "sew_blocks"])
def test_the_summary_says_what_is_in_the_model(name: str, level: int) -> None:
    workload = CASES[name].make()
    modules = {path: id(m) for path, m in workload.model.named_modules()}
    layers = [
        path for path, m in workload.model.named_modules() if isinstance(m, workload.layer_types)
    ]
    outer = [p for p in layers if not any(p.startswith(f"{other}.") for other in layers)]
    summary = optimised(workload, level=level)
    kinds = [type(m) for m in workload.model.modules()]
    assert summary.gc_container_count == kinds.count(GCContainer)
    assert summary.tcgc_container_count == kinds.count(TCGCContainer)
    assert {id(m) for m in workload.model.modules() if not isinstance(m, GCContainer)} == set(
        modules.values()
    )
    assert (summary.requested_level, summary.applied_level) == (level, level)
    if level == 0:
        assert (summary.applied_steps, summary.gc_wrap_count) == ([], 0)
        return
    assert summary.gc_selected_modules == outer
    assert summary.gc_wrap_count == len(outer) == summary.gc_candidate_count
    counts = ("manual_compressor_count", "bit_compressor_count", "null_compressor_count")
    assert sum(getattr(summary, count) for count in counts) == len(outer)
    assert summary.applied_steps[0] == "level1_gc"
    for number, step in ((2, "spatial_split"), (3, "temporal_split"), (4, "unwrap")):
        happened = getattr(summary, f"{step}_count") > 0
        assert (f"level{number}_{step}" in summary.applied_steps) == happened
        skipped = any(line.startswith(f"level{number}:") for line in summary.skipped_steps)
        assert happened or skipped == (number <= level)
        assert number <= level or not (happened or skipped)
    assert last_peak(summary)[1] < last_peak(summary)[0]


def test_level_1_wraps_each_layer_and_packs_what_is_proven() -> None:
    workload = vgg_small()
    summary = optimised(workload, level=1)
    found = containers(workload.model)
    assert list(found) == summary.gc_selected_modules == [f"features.{i}" for i in range(8)]
    kinds = [type(container.x_compressor) for container in found.values()]
    assert kinds == [NullSpikeCompressor] + [BitSpikeCompressor] * 7
    assert (summary.bit_compressor_count, summary.null_compressor_count) == (7, 1)


def test_a_sum_of_spikes_is_kept_in_two_bits() -> None:
    workload = sew_small()
    optimised(workload, level=1)
    container = containers(workload.model)["stages.1.first"]
    assert container.x_compressor == GridSpikeCompressor(2, 1.0, 0)
    first = containers(workload.model)["stages.0.first"]
    assert isinstance(first.x_compressor, BitSpikeCompressor)


class Halves(nn.Module):
    """Its second layer gets numbers that a weight decides, which may be whole by chance."""

    def __init__(self) -> None:
        super().__init__()
        self.first = LinearLayer(4, 4, LIFNode(step_mode="m"))
        self.second = LinearLayer(4, 4, LIFNode(step_mode="m"))
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.scale * self.first(x))


def test_spikes_are_packed_where_they_are_proven_and_not_where_they_are_seen() -> None:
    model, x = Halves(), (torch.rand(4, 2, 4) > 0.5).float()
    memory_optimization(model, LinearLayer, (x,), level=1)
    kinds = [type(container.x_compressor) for container in containers(model).values()]
    assert kinds == [NullSpikeCompressor] * 2


def test_without_compression_inputs_are_kept_as_they_are() -> None:
    workload = vgg_small()
    workload.model.get_submodule("features.1").x_compressor = "BitSpikeCompressor"
    summary = optimised(workload, level=1, compress_x=False)
    kinds = {type(container.x_compressor) for container in containers(workload.model).values()}
    assert kinds == {NullSpikeCompressor}
    assert (summary.null_compressor_count, summary.manual_compressor_count) == (8, 0)


@pytest.mark.parametrize(
    "given", ["Uint8SpikeCompressor", Uint8SpikeCompressor, Uint8SpikeCompressor()]
)
@pytest.mark.parametrize("level", [1, 2])
def test_a_compressor_that_the_user_set_is_taken(given: Any, level: int) -> None:
    workload = vgg_small()
    for path in ("features.2", "features.7"):
        workload.model.get_submodule(path).x_compressor = given
    summary = optimised(workload, level=level)
    for path in ("features.2", "features.7"):
        compressor = containers(workload.model)[path].x_compressor
        assert isinstance(compressor, Uint8SpikeCompressor)
        assert compressor is not given
    assert summary.manual_compressor_count == 2
    assert summary.bit_compressor_count == 5


@pytest.mark.parametrize("level", [1, 3, 4])
@pytest.mark.parametrize("name", ["chunks", "spikformer_blocks", "jelly_layers"])
def test_state_dicts_stay_the_same_and_load_both_ways(name: str, level: int) -> None:
    plain, workload = CASES[name].make(), CASES[name].make()
    optimised(workload, level=level)
    before, after = plain.model.state_dict(), workload.model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)
    changed = {key: value + 1 for key, value in before.items()}
    for model in (workload.model, plain.model):
        model.load_state_dict(changed)
        assert all(torch.equal(v, changed[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("level", [1, 4])
def test_planning_leaves_state_gradients_and_random_numbers_alone(level: int) -> None:
    workload = CASES["dropout"].make()
    model, (x,) = workload.model, workload.inputs
    workload.loss_fn(model(x)).backward()
    model[1].eval()
    memories = [dict(m._memories) for m in model.modules() if isinstance(m, LIFNode)]
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    values = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    random, version = torch.get_rng_state(), x._version
    memory_optimization(model, LinearLayer, (x,), level=level)
    assert torch.equal(torch.get_rng_state(), random)
    assert [m._memories for m in model.modules() if isinstance(m, LIFNode)] == memories
    assert all(
        parameter.grad is gradient
        for parameter, gradient in zip(model.parameters(), gradients.values(), strict=True)
    )
    assert all(torch.equal(value, values[key]) for key, value in model.state_dict().items())
    assert [m.training for m in model.modules() if not isinstance(m, GCContainer)] == modes
    assert not any(m.training for m in model.modules() if m is model[1])
    assert (x.grad, x._version) == (None, version)


def arguments_of(x: Tensor) -> list[Any]:
    return [x, [x], (x,), (x.to("meta"),)]


def test_an_input_may_come_alone_in_a_list_in_a_tuple_or_without_values() -> None:
    found: list[Any] = []
    for given in arguments_of(vgg_small().inputs[0]):
        workload = vgg_small()
        memory_optimization(workload.model, SpikingLayer, given, level=2)
        found.append(described(workload.model))
    assert found == [found[0]] * 4
    assert found[0]


def test_level_1_without_an_input_wraps_and_packs_nothing() -> None:
    workload = vgg_small()
    result = memory_optimization(workload.model, SpikingLayer, level=1, return_summary=True)
    assert isinstance(result, tuple)
    kinds = {type(container.x_compressor) for container in containers(workload.model).values()}
    assert kinds == {NullSpikeCompressor}
    assert result[1].null_compressor_count == 8
    assert result[1].gc_selection_policy == "all_candidates"


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"max_gc_wrapped_modules": 3}, 3),
        ({"gc_target_budget_ratio": 0.3}, 3),
        ({"checkpoint_budget": "speed"}, 4),
        ({"checkpoint_budget": "balanced"}, 6),
        ({"max_gc_wrapped_modules": 0}, 0),
        ({"max_gc_wrapped_modules": 2, "gc_target_budget_ratio": 1.0}, 2),
    ],
)
def test_budgets_choose_the_layers_with_the_largest_inputs(
    options: dict[str, Any], count: int
) -> None:
    workload = vgg_small()
    sizes: dict[str, int] = {}
    for path, module in workload.model.named_modules():
        if isinstance(module, SpikingLayer):
            module.register_forward_pre_hook(
                lambda _, args, path=path: sizes.__setitem__(path, args[0].numel())
            )
    workload.model(*workload.inputs)
    summary = optimised(workload, level=1, **options)
    assert len(summary.gc_selected_modules) == len(containers(workload.model)) == count
    left = [size for path, size in sizes.items() if path not in summary.gc_selected_modules]
    assert all(sizes[path] >= max(left) for path in summary.gc_selected_modules)
    assert summary.gc_selection_policy == (
        "largest_input_activations" if count else "explicit_zero_budget"
    )


@pytest.mark.parametrize(
    "limits",
    [{"max_split_rounds": 0}, {"max_candidates_per_round": 0}],
)
@pytest.mark.parametrize("level", [2, 3])
def test_searches_of_no_rounds_or_no_candidates_split_nothing(
    level: int, limits: dict[str, int]
) -> None:
    workload = CASES["chunks"].make()
    summary = optimised(workload, level=level, **limits)
    assert (summary.spatial_split_count, summary.temporal_split_count) == (0, 0)
    assert summary.gc_container_count == summary.gc_wrap_count == 2


def test_rounds_limit_the_splits_of_each_level() -> None:
    counts = [
        optimised(CASES["chunks"].make(), level=3, max_split_rounds=rounds).temporal_split_count
        for rounds in (1, 2)
    ]
    assert counts == [1, 2]


def test_each_step_is_printed_on_request_alone(capsys: pytest.CaptureFixture[str]) -> None:
    workload = CASES["dropout"].make()
    summary = optimised(workload, level=4, verbose=True)
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith("snnfx memory_optimization: ") for line in lines)
    for level, count in (
        (1, 1),
        (2, summary.spatial_split_count),
        (3, summary.temporal_split_count),
        (4, summary.unwrap_count),
    ):
        assert sum(f"level {level}: " in line for line in lines) >= count > 0
    before, after = last_peak(summary)
    assert f"{before} -> {after} bytes" in lines[-1]
    optimised(CASES["dropout"].make(), level=4)
    assert capsys.readouterr().out == ""


def test_a_warm_up_trains_a_copy() -> None:
    calls: dict[bool, list[bool]] = {False: [], True: []}
    for warm, own in calls.items():
        workload = CASES["dropout"].make()
        before = copy.deepcopy(workload.model.state_dict())
        random = torch.get_rng_state()
        workload.model[-1].register_forward_hook(lambda m, *_, own=own: own.append(m.training))
        summary = optimised(workload, level=1, warmup_in_main_process=warm)
        assert ("warmup" in summary.applied_steps) == warm
        assert all(torch.equal(v, before[k]) for k, v in workload.model.state_dict().items())
        assert torch.equal(torch.get_rng_state(), random)
        assert all(parameter.grad is None for parameter in workload.model.parameters())
    assert calls[True] == [*calls[False], True]


def test_two_runs_choose_the_same_containers() -> None:
    found: list[Any] = []
    for _ in range(2):
        workload = CASES["dropout"].make()
        optimised(workload, level=4)
        found.append(described(workload.model))
    assert found[0] == found[1]
    assert found[0]


@pytest.mark.parametrize("dummy", [True, False])
def test_apply_gc_is_level_1_with_a_report(dummy: bool) -> None:
    workload, other = vgg_small(), vgg_small()
    inputs = workload.inputs if dummy else None
    result = apply_gc(
        workload.model, SpikingLayer, inputs, checkpoint_budget="speed", return_summary=True
    )
    assert isinstance(result, tuple)
    model, report = result
    assert model is workload.model
    assert apply_gc(other.model, SpikingLayer, inputs, device="cpu", checkpoint_budget="speed") is (
        other.model
    )
    assert described(model) == described(other.model)
    assert report["gc_wrap_count"] == report["gc_selected_count"] == len(containers(model)) == 4
    assert report["gc_candidate_count"] == 8
    kinds = [type(container.x_compressor) for container in containers(model).values()]
    assert report["bit_compressor_count"] == kinds.count(BitSpikeCompressor) == 4 * dummy
    assert report["null_compressor_count"] == kinds.count(NullSpikeCompressor)
    assert report["checkpoint_budget"] == "speed"
    assert "checkpoint_budget:speed" in report["budget_notes"]


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"level": 5}, "level=5"),
    ({"level": 2, "dummy_input": None}, "dummy_input must be provided for level=2"),
    ({"profile": "fast"}, "Unsupported memopt profile 'fast'"),
    ({"prefer": "size"}, "Unsupported prefer 'size'"),
    ({"checkpoint_budget": "all"}, "Unsupported checkpoint_budget 'all'"),
    ({"temporal_split_factor": 1}, "temporal_split_factor=1"),
    ({"gc_target_budget_ratio": 0.0}, "gc_target_budget_ratio=0.0"),
    ({"max_gc_wrapped_modules": -1}, "max_gc_wrapped_modules=-1"),
    ({"instance": "SpikingLayer"}, "instance='SpikingLayer' is not allowed"),
]


@pytest.mark.parametrize(("wrong", "message"), WRONG)
def test_wrong_arguments_are_errors_that_leave_the_model_alone(
    wrong: dict[str, Any], message: str
) -> None:
    workload = vgg_small()
    given = {"instance": SpikingLayer, "dummy_input": workload.inputs, "level": 1, **wrong}
    with pytest.raises(OptionError, match=message):
        memory_optimization(workload.model, **given)
    assert not containers(workload.model)


@pytest.mark.parametrize(
    "set_up", [functional.reset_net, lambda net: functional.set_step_mode(net, "m")]
)
def test_spikingjelly_sets_up_wrapped_neurons_without_warnings(
    set_up: Callable[[nn.Module], None],
) -> None:
    workload = CASES["jelly_layers"].make()
    memory_optimization(workload.model, neuron.BaseNode, workload.inputs, level=1)
    assert len(containers(workload.model)) == 3
    workload.model(*workload.inputs)
    nodes = [m for m in workload.model.modules() if isinstance(m, neuron.BaseNode)]
    assert all(isinstance(node.v, Tensor) for node in nodes)
    set_up(workload.model)
    assert all(node.step_mode == "m" for node in nodes)
    assert set_up is not functional.reset_net or all(node.v == 0.0 for node in nodes)


def test_the_result_can_be_copied_and_pickled() -> None:
    workload = CASES["dropout"].make()
    optimised(workload, level=4)
    for twin in (copy.deepcopy(workload.model), pickle.loads(pickle.dumps(workload.model))):
        assert described(twin) == described(workload.model)
        assert list(twin.state_dict()) == list(workload.model.state_dict())
