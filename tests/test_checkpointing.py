"""Containers as modules: state dicts, copies, settings, and what asks for the first run."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from spikingjelly.activation_based import neuron as peer
from torch import Tensor, nn

from snnfx.checkpointing import (
    GCContainer,
    TCGCContainer,
    in_gc_1st_forward,
    input_compressed_gc,
    query_autocast,
    to_gc_function,
)
from snnfx.compressors import (
    BitSpikeCompressor,
    CompressedSpikes,
    NullSpikeCompressor,
    Uint8SpikeCompressor,
)
from snnfx.errors import ChunkError
from snnfx.neurons import LIFNode

from tests.checkpointed import compare, one_step, spikes, weighted

NULL = NullSpikeCompressor()


def block() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), LIFNode(v_threshold=0.3))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.readout = block(), block(), nn.Linear(6, 3)
        self.second[0] = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.second(self.first(x)))


def wrapped(depth: int = 1) -> Net:
    """The net in containers `depth` deep."""
    net = Net()
    for _ in range(depth):
        net.first = GCContainer.wrapping(net.first, BitSpikeCompressor())
        net.second = GCContainer.wrapping(net.second)
    net.readout = GCContainer.wrapping(net.readout)
    return net


def nested_keys(net: Net) -> dict[str, Tensor]:
    """A state dict whose keys go through the containers, as `nn.Sequential` would give it."""
    return dict(itertools.chain(net.named_parameters(), net.named_buffers()))


# ---------------------------------------------------------------- state dicts


@pytest.mark.parametrize("depth", [1, 2])
def test_a_wrapped_model_and_the_plain_one_load_each_others_state(depth: int) -> None:
    plain, model = Net(), wrapped(depth)
    assert list(model.state_dict()) == list(plain.state_dict())
    model.load_state_dict(plain.state_dict())
    for key, tensor in plain.state_dict().items():
        assert torch.equal(model.state_dict()[key], tensor)
    one_step(model, [spikes(5, 4)], weighted)
    plain.load_state_dict(model.state_dict())
    model.first.load_state_dict(block().state_dict())
    assert list(model.first.state_dict()) == list(block().state_dict())


@pytest.mark.parametrize("depth", [1, 2])
def test_a_state_dict_with_keys_through_the_containers_is_loaded_too(depth: int) -> None:
    saved = {key: value.clone() for key, value in nested_keys(wrapped(depth)).items()}
    assert not saved.keys() & Net().state_dict().keys()
    model = wrapped(depth)
    model.load_state_dict(saved)
    for key, tensor in nested_keys(model).items():
        assert torch.equal(tensor, saved[key])


def test_a_state_dict_is_written_and_read_through_a_file_and_by_assignment() -> None:
    model, file = wrapped(), io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = wrapped()
    other.load_state_dict(torch.load(file, weights_only=True), assign=True)
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True)
    )


@pytest.mark.parametrize("depth", [1, 2])
def test_strict_errors_name_the_keys_of_the_state_dict(depth: int) -> None:
    state = Net().state_dict()
    del state["first.0.weight"], state["readout.bias"]
    state["second.0.wrong"] = torch.zeros(1)
    with pytest.raises(RuntimeError) as error:
        wrapped(depth).load_state_dict(state)
    assert 'Missing key(s) in state_dict: "first.0.weight", "readout.bias".' in str(error.value)
    assert 'Unexpected key(s) in state_dict: "second.0.wrong".' in str(error.value)
    keys = wrapped(depth).load_state_dict(state, strict=False)
    assert keys.missing_keys == ["first.0.weight", "readout.bias"]
    assert keys.unexpected_keys == ["second.0.wrong"]


def test_keys_keep_their_order_over_training_steps() -> None:
    for build in (wrapped, lambda: nn.Sequential(GCContainer(None, *block()))):
        model = build()
        keys = list(model.state_dict())
        attributes = [list(vars(module)) for module in model.modules()]
        for _ in range(2):
            one_step(model, [spikes(5, 4).requires_grad_()], weighted)
            for module in model.modules():
                if isinstance(module, LIFNode):
                    module.reset()
        assert list(model.state_dict()) == keys
        assert [list(vars(module)) for module in model.modules()] == attributes


def test_keys_of_a_container_that_wraps_nothing_are_those_of_a_sequential() -> None:
    plain, model = block(), GCContainer(None, *block())
    assert list(model.state_dict()) == list(plain.state_dict())
    model.load_state_dict(plain.state_dict())


# ---------------------------------------------------------------- modules


def test_a_wrapped_module_is_read_through_the_container() -> None:
    container = GCContainer.wrapping(nn.Conv2d(2, 3, 3))
    assert container.kernel_size == (3, 3)
    assert container.weight is container[0].weight
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = container.no_such_thing
    with pytest.raises(AttributeError, match="kernel_size"):
        _ = GCContainer(None, nn.Conv2d(2, 3, 3)).kernel_size


def test_tools_that_walk_modules_do_not_find_a_neuron_twice() -> None:
    for node in (LIFNode(v_threshold=0.3), peer.LIFNode(v_threshold=0.3)):
        container = GCContainer.wrapping(node)
        assert not hasattr(container, "_memories")
        assert container.num_states == 1
        assert container.v_threshold == 0.3
    for name in ("reset", "detach", "step_mode"):  # what SpikingJelly asks all modules for
        assert not hasattr(container, name)


def test_a_model_can_reset_a_neuron_of_ours_in_a_container() -> None:
    container = GCContainer.wrapping(LIFNode())
    container(spikes(3, 4))
    assert isinstance(container.v, torch.Tensor)
    container.reset()
    assert container.v == 0.0
    assert not hasattr(container, "_memories")


@pytest.mark.parametrize("build", [wrapped, lambda: GCContainer(BitSpikeCompressor(), *block())])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_is_equal_and_independent(
    build: Callable[[], nn.Module], copied: Callable[[nn.Module], nn.Module]
) -> None:
    model = build()
    other = copied(model)
    assert repr(other) == repr(model)
    assert not {id(t) for t in other.parameters()} & {id(t) for t in model.parameters()}
    before = copy.deepcopy(model.state_dict())
    x = spikes(5, 4)
    expected = copy.deepcopy(model)(x)
    output = one_step(other, [x], weighted)
    assert torch.equal(output, expected)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_copy_of_a_container_around_a_graph_module_is_a_container() -> None:
    container = GCContainer.wrapping(torch.fx.symbolic_trace(nn.Sequential(nn.Linear(2, 2))))
    assert type(copy.deepcopy(container)) is GCContainer


def test_repr_tells_compressor_and_chunks() -> None:
    assert "x_compressor=BitSpikeCompressor" in repr(GCContainer(BitSpikeCompressor(), nn.ReLU()))
    text = repr(TCGCContainer(None, nn.ReLU(), n_chunk=3))
    assert "x_compressor=NullSpikeCompressor, n_chunk=3, n_seq_inputs=1, n_outputs=1" in text


def test_a_slice_of_a_container_is_one_with_the_same_settings() -> None:
    layers = [nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)]
    part = GCContainer(BitSpikeCompressor(), *layers)[1:]
    assert type(part) is GCContainer
    assert part.x_compressor == BitSpikeCompressor()
    assert list(part) == layers[1:]
    chunked = TCGCContainer(None, *layers, n_chunk=3, n_seq_inputs=2)[:2]
    assert (chunked.n_chunk, chunked.n_seq_inputs, chunked.n_outputs) == (3, 2, 1)
    assert part[0] is layers[1]


def test_modules_may_be_named() -> None:
    container = GCContainer(None, OrderedDict(linear=nn.Linear(4, 3), act=nn.Sigmoid()))
    assert list(container.state_dict()) == ["linear.weight", "linear.bias"]
    compare(container, lambda m: nn.Sequential(*m), [torch.randn(2, 4, requires_grad=True)])


def test_settings_reach_the_modules() -> None:
    for container in (GCContainer(None, *block()), GCContainer.wrapping(block())):
        container.eval()
        assert not any(module.training for module in container.modules())
        container.train()
        assert all(module.training for module in container.modules())
        container.to(torch.float64)
        x = torch.rand(5, 4, dtype=torch.float64, requires_grad=True)
        output = container(x)
        output.sum().backward()
        assert output.dtype == x.grad.dtype == torch.float64


class Counting(Uint8SpikeCompressor):
    """Counts what it compresses."""

    calls = 0

    def compress(self, s_seq: Tensor) -> CompressedSpikes:
        type(self).calls += 1
        return super().compress(s_seq)


def test_nothing_is_compressed_where_no_gradient_can_flow() -> None:
    Counting.calls = 0
    x = spikes(5, 4)
    frozen = GCContainer(Counting(), nn.Linear(4, 4)).requires_grad_(False)
    model = GCContainer(Counting(), nn.Linear(4, 4))
    function = to_gc_function(Counting(), lambda x: x.sin())
    with torch.no_grad():
        expected = model(x)
        function(x)
    with torch.inference_mode():
        assert torch.equal(model(x), expected)
        function(x)
    frozen(x)
    assert Counting.calls == 0
    model(x)
    function(x.requires_grad_())
    frozen(x)
    assert Counting.calls == 3


# ---------------------------------------------------------------- what asks


def test_the_first_run_is_known_only_inside_of_it() -> None:
    seen: list[tuple[str, bool]] = []

    def inner(x: Tensor) -> Tensor:
        seen.append(("inner", in_gc_1st_forward()))
        return torch.sigmoid(x)

    def outer(x: Tensor) -> Tensor:
        seen.append(("outer", in_gc_1st_forward()))
        x = input_compressed_gc(inner, NULL, torch.sigmoid(x))
        seen.append(("outer again", in_gc_1st_forward()))
        return torch.sigmoid(x)

    assert not in_gc_1st_forward()
    output = input_compressed_gc(outer, NULL, torch.randn(3, requires_grad=True))
    assert seen == [("outer", True), ("inner", True), ("outer again", True)]
    seen.clear()
    output.sum().backward()
    assert ("inner", False) in seen
    assert not any(first for _, first in seen)
    with torch.no_grad():
        GCContainer(None, nn.Identity())(torch.randn(3))
        seen.clear()
        input_compressed_gc(inner, NULL, torch.randn(3))
    assert seen == [("inner", False)]
    assert not in_gc_1st_forward()


def test_query_autocast() -> None:
    assert query_autocast() == ("cpu", torch.get_autocast_dtype("cpu"), False)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            assert query_autocast() == ("cpu", dtype, True)
            with torch.autocast("cpu", enabled=False):
                assert query_autocast()[2] is False


# ---------------------------------------------------------------- chunks


@pytest.mark.parametrize("n_chunk", [1, 2, 3, 5, 9])
def test_chunks_carry_the_state_over(n_chunk: int) -> None:
    def wrap(model: nn.Module) -> nn.Module:
        container = TCGCContainer(BitSpikeCompressor(), *model, n_chunk=n_chunk)
        container.check_chunks = False
        return container

    def step(model: nn.Module, inputs: Any, loss: Any) -> Any:
        output = one_step(model, inputs, loss)
        model[-1].reset()
        return output

    # Without weights there is no sum over chunks whose order could differ.
    layers = nn.Sequential(nn.Sigmoid(), LIFNode(v_threshold=0.4, step_mode="m"))
    compare(layers, wrap, [spikes(5, 3, 4).requires_grad_()], step=step)


def test_counts_and_lengths_of_chunks_that_do_not_fit() -> None:
    for name in ("n_chunk", "n_seq_inputs", "n_outputs"):
        with pytest.raises(ChunkError, match=f"{name} must be a whole number of 1 or more"):
            TCGCContainer(None, nn.ReLU(), **{name: 0})
    container = TCGCContainer(None, nn.Bilinear(2, 2, 2), n_chunk=2, n_seq_inputs=2)
    container.check_chunks = False
    with pytest.raises(ChunkError, match="takes 2 sequences with the same number of time steps"):
        container(torch.rand(4, 3, 2), torch.rand(5, 3, 2))
    many = TCGCContainer(None, nn.Linear(2, 2), n_chunk=2, n_outputs=2)
    many.check_chunks = False
    with pytest.raises(ChunkError, match="must give 2 tensors"):
        many(torch.rand(4, 3, 2))
