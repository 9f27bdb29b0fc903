"""Containers that run in chunks of time, what proves that they may, and when the proof is made."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from spikingjelly.activation_based import layer
from spikingjelly.activation_based import neuron as peer
from torch import Tensor, nn

from snnfx import checkpointing, neurons
from snnfx.base import MemoryModule
from snnfx.checkpointing import GCContainer, TCGCContainer
from snnfx.eager import chunk_proof
from snnfx.eager.chunk_proof import prove_chunks
from snnfx.errors import ChunkError

STEPS = 6


def images(steps: int = STEPS) -> Tensor:
    return torch.randn(steps, 2, 3, 4, 4, dtype=torch.float64)


def tokens(steps: int = STEPS) -> Tensor:
    return torch.randn(steps, 2, 4, dtype=torch.float64)


def states(module: nn.Module) -> Iterator[Any]:
    for inner in module.modules():
        if not isinstance(inner, GCContainer):
            yield from getattr(inner, "_memories", {}).values()


def lif(**options: Any) -> neurons.LIFNode:
    return neurons.LIFNode(decay_input=False, step_mode="m", **options)


def per_step(*modules: nn.Module) -> nn.Module:
    return layer.SeqToANNContainer(*modules)


STACKS: dict[str, tuple[Callable[[], tuple[nn.Module, ...]], Callable[..., Tensor]]] = {
    "lif": (lambda: (lif(),), images),
    "lif soft": (lambda: (lif(v_reset=None, detach_reset=True),), images),
    "if": (lambda: (neurons.IFNode(step_mode="m"),), images),
    "plif": (lambda: (neurons.ParametricLIFNode(step_mode="m"),), images),
    "peer lif": (lambda: (peer.LIFNode(step_mode="m"),), images),
    "peer if": (lambda: (peer.IFNode(v_reset=None, step_mode="m"),), images),
    "peer plif": (lambda: (peer.ParametricLIFNode(step_mode="m"),), images),
    "linear": (lambda: (nn.Linear(4, 5), lif(), nn.Linear(5, 3), lif()), tokens),
    "conv": (lambda: (per_step(nn.Conv2d(3, 4, 3, padding=1)), lif()), images),
    "eval norm": (
        lambda: (
            per_step(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4).eval()),
            peer.LIFNode(step_mode="m"),
        ),
        images,
    ),
    "eval dropout": (lambda: (nn.Linear(4, 4), nn.Dropout(0.5).eval(), lif()), tokens),
}


def chunked(*modules: nn.Module, n_chunk: int = 3, **options: Any) -> TCGCContainer:
    return TCGCContainer(None, *modules, n_chunk=n_chunk, **options).double()


def assert_equal_to_whole(container: TCGCContainer, *inputs: Tensor, calls: int = 1) -> None:
    """Hold that the container gives what its modules give without chunks."""
    plain = copy.deepcopy(container)
    plain.n_chunk = 1
    found: list[list[Tensor]] = []
    for module in (container, plain):
        own = [x.clone().requires_grad_(x.is_floating_point()) for x in inputs]
        results = [module(*own) for _ in range(calls)]
        outputs = [t for r in results for t in (r if isinstance(r, tuple) else (r,))]
        sum((t * torch.arange(1.0, t.numel() + 1).view_as(t)).sum() for t in outputs).backward()
        exact = [*outputs, *(v for v in states(module) if isinstance(v, Tensor))]
        found.append([t.detach() for t in exact])
        found.append([t.grad for t in (*own, *module.parameters()) if t.grad is not None])
    assert len(found[0]) == len(found[2])
    assert all(torch.equal(a, b) for a, b in zip(found[0], found[2], strict=True))
    assert found[1]
    for a, b in zip(found[1], found[3], strict=True):
        assert (a - b).norm() <= 1e-12 * b.norm()


@pytest.mark.parametrize("n_chunk", [2, 4, 6, 50])
@pytest.mark.parametrize("name", STACKS)
def test_layers_and_neurons_give_in_chunks_what_they_give_whole(name: str, n_chunk: int) -> None:
    make, inputs = STACKS[name]
    assert_equal_to_whole(chunked(*make(), n_chunk=n_chunk), inputs())


@pytest.mark.parametrize("name", ["lif", "peer lif", "linear", "peer plif"])
def test_state_is_carried_over_chunks_and_calls(name: str) -> None:
    make, inputs = STACKS[name]
    assert_equal_to_whole(chunked(*make(), n_chunk=4), inputs(), calls=2)


def test_chunks_really_run_one_after_the_other() -> None:
    container = chunked(nn.Linear(4, 4), lif(), n_chunk=4)
    seen: list[int] = []
    container[0].register_forward_hook(lambda _, args, out: seen.append(len(args[0])))
    container.check_chunks = False
    container(tokens())
    assert seen == [2, 2, 1, 1]


class Attention(nn.Module):
    """Each step looks at all steps."""

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.softmax(torch.einsum("tnc,snc->nts", x, x), -1)
        return torch.einsum("nts,snc->tnc", weights, x)


REFUSED: dict[str, tuple[Callable[[], tuple[nn.Module, ...]], Callable[..., Tensor], str]] = {
    "norm": (lambda: (per_step(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)),), images, "batch_norm"),
    "dropout": (lambda: (nn.Linear(4, 4), nn.Dropout(0.5)), tokens, "draws random numbers"),
    "psn": (lambda: (peer.PSN(T=STEPS),), images, "'addmm'"),
    "attention": (lambda: (nn.Linear(4, 4), Attention()), tokens, "mixes time steps|in the whole"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_mixes_time_steps_is_refused_by_its_name(name: str) -> None:
    make, inputs, message = REFUSED[name]
    container = chunked(*make())
    before = copy.deepcopy(container.state_dict())
    with pytest.raises(ChunkError, match=message) as error:
        container(inputs())
    assert all(type(module).__name__ in str(error.value) for module in container)
    assert all(torch.equal(v, before[k]) for k, v in container.state_dict().items())
    with pytest.raises(ChunkError, match=message):  # a refusal is no proof
        container(inputs())


def test_without_the_check_what_is_not_proven_runs() -> None:
    container = chunked(nn.Linear(4, 4), Attention())
    container.check_chunks = False
    whole = container._plain(tokens_seen := tokens())
    assert container(tokens_seen).shape == whole.shape
    assert not torch.allclose(container(tokens_seen), whole)


class TwoInTwoOut(MemoryModule):
    """Two sequences, a scale that all steps share, and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.step_mode = "m"
        self.weight = nn.Parameter(torch.ones(4))
        self.register_memory("total", 0.0)

    def multi_step_forward(self, x: Tensor, y: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        sums = list[Tensor]()
        for a, b in zip(x, y, strict=True):
            self.total = self.total * 0.5 + a * b * self.weight
            sums.append(self.total)
        return torch.stack(sums), x * scale

    def single_step_forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


@pytest.mark.parametrize("n_chunk", [2, 4])
def test_several_sequences_and_outputs_and_what_all_chunks_share(n_chunk: int) -> None:
    container = chunked(TwoInTwoOut(), n_chunk=n_chunk, n_seq_inputs=2, n_outputs=2)
    scale = torch.rand(4, dtype=torch.float64)
    assert_equal_to_whole(container, tokens(), tokens(), scale, calls=2)


@pytest.fixture
def proofs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The sizes of the chunks of each proof that is made."""
    made: list[Any] = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        made.append(args[3])
        return prove_chunks(*args, **kwargs)

    monkeypatch.setattr(chunk_proof, "prove_chunks", counted)
    return made


def test_each_kind_of_input_is_proven_once(proofs: list[Any]) -> None:
    container = chunked(nn.Linear(4, 4), nn.Dropout(0.5).eval(), n_chunk=3)
    for _ in range(3):
        container(tokens())
    assert proofs == [[2, 2, 2]]
    container(tokens(4))
    assert proofs[1:] == [[2, 1, 1]]
    container.float()(tokens().float())
    assert len(proofs) == 3
    container.double()(tokens())
    assert len(proofs) == 3
    container.train()
    with pytest.raises(ChunkError):
        container(tokens())
    container.n_chunk = 2
    container.eval()(tokens())
    assert proofs[-1] == [3, 3]


def test_a_proof_depends_on_autocast_and_on_the_kind_of_state(proofs: list[Any]) -> None:
    container = chunked(nn.Linear(4, 4), lif())
    container(tokens())
    container(tokens())  # from a state that is a tensor now
    container(tokens())
    assert len(proofs) == 2
    with torch.autocast("cpu", torch.bfloat16):
        container(tokens())
    assert len(proofs) == 3


def test_nothing_is_proven_where_there_is_one_chunk_or_no_gradient(proofs: list[Any]) -> None:
    container = chunked(nn.Linear(4, 4), Attention())
    x = tokens()
    with torch.no_grad():
        assert torch.equal(container(x), container._plain(x))
    assert torch.equal(container(x[:1]), container._plain(x[:1]))
    container.requires_grad_(False)
    assert torch.equal(container(x), container._plain(x))
    container.requires_grad_(True).n_chunk = 1
    assert torch.equal(container(x), container._plain(x))
    assert proofs == []


def test_a_proof_changes_neither_state_nor_random_numbers() -> None:
    modules = nn.Sequential(nn.Linear(4, 4), lif(), peer.LIFNode(step_mode="m")).double()
    modules(tokens())
    before, random = list(states(modules)), torch.get_rng_state()
    sizes = [4, 2]
    assert prove_chunks(modules, [tokens_seen := tokens()], [], sizes) is None
    torch.set_rng_state(random)
    kept = list(states(modules))
    assert len(kept) == 2
    assert all(a is b for a, b in zip(kept, before, strict=True))
    assert prove_chunks(modules, [tokens_seen], [], sizes) is None
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None for p in modules.parameters())


@pytest.mark.parametrize(
    ("options", "inputs", "message"),
    [
        ({"n_seq_inputs": 2}, lambda: (tokens(6), tokens(5)), r"\[6, 5\] steps; see n_seq_inputs"),
        ({"n_seq_inputs": 2}, lambda: (tokens(),), "takes 2 sequences"),
        ({"n_seq_inputs": 2}, lambda: (tokens(), 3.0), r"\[6, None\]"),
    ],
)
def test_sequences_that_do_not_fit_together_are_errors(
    options: dict[str, int], inputs: Callable[[], tuple[Any, ...]], message: str
) -> None:
    with pytest.raises(ChunkError, match=message):
        chunked(TwoInTwoOut(), **options)(*inputs())


def test_another_number_of_outputs_is_an_error() -> None:
    scale = torch.ones(4, dtype=torch.float64)
    with pytest.raises(ChunkError, match="must give 3 tensors"):
        chunked(TwoInTwoOut(), n_seq_inputs=2, n_outputs=3)(tokens(), tokens(), scale)
    with pytest.raises(ChunkError, match="must give 1 tensors"):
        chunked(TwoInTwoOut(), n_seq_inputs=2)(tokens(), tokens(), scale)
    with pytest.raises(ChunkError, match="must give 2 tensors"):
        chunked(nn.Linear(4, 4), n_outputs=2)(tokens())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_proven_container_can_be_copied_and_pickled(
    copied: Callable[[TCGCContainer], TCGCContainer],
) -> None:
    container = chunked(nn.Linear(4, 4), peer.LIFNode(step_mode="m"))
    with torch.no_grad():
        container[0].weight.mul_(3)
    container(tokens())
    for node in (m for m in container.modules() if isinstance(m, peer.LIFNode)):
        node.reset()
    twin = copied(container)
    x = tokens()
    assert torch.equal(twin(x), container(x))
    assert checkpointing.chunk_sizes(STEPS, twin.n_chunk) == [2, 2, 2]
    assert_equal_to_whole(twin, tokens())
