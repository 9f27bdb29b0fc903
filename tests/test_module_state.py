"""What modules held before a run is put back for a second one, and what they hold now after it."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from snnfx.errors import RecomputationError
from snnfx.module_state import StateWatch
from snnfx.neurons import LIFNode


class Holder(nn.Module):
    """State of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("buffer", torch.zeros(3))
        self.register_buffer("count", torch.tensor(0))
        self.weight = nn.Parameter(torch.ones(3))
        self.v: Any = 0.0
        self.name = "a"
        self.record: list[Any] = []
        self.memory: dict[str, Any] = {"v": torch.ones(3)}
        self.deep = OrderedDict(inner=[torch.ones(2), {"x": 1}])
        self.default: defaultdict[str, list[int]] = defaultdict(list)
        self.pair = (torch.zeros(2), 1)


def changes() -> dict[str, Callable[[Holder], object]]:
    """Name to a run that changes the state of a `Holder`."""
    return {
        "nothing": lambda m: None,
        "buffer replaced": lambda m: setattr(m, "buffer", m.buffer + 1),
        "buffer written": lambda m: m.buffer.add_(1),
        "buffer written without a trace": lambda m: m.buffer.data.add_(1),
        "count": lambda m: m.count.add_(1),
        "number": lambda m: setattr(m, "v", m.v + 1),
        "number to tensor": lambda m: setattr(m, "v", torch.ones(3) * m.v),
        "setting": lambda m: setattr(m, "name", m.name + "b"),
        "training": lambda m: m.train(not m.training),
        "new attribute": lambda m: setattr(m, "other", 1),
        "attribute gone": lambda m: delattr(m, "name"),
        "record": lambda m: m.record.append(len(m.record)),
        "record replaced": lambda m: setattr(m, "record", [*m.record, 1]),
        "memory": lambda m: m.memory.update(v=m.memory["v"] * 2, w=1),
        "memory written": lambda m: m.memory["v"].mul_(2),
        "memory emptied": lambda m: m.memory.clear(),
        "deep": lambda m: m.deep["inner"][1].update(x=m.deep["inner"][1]["x"] + 1),
        "deep written": lambda m: m.deep["inner"][0].mul_(2),
        "default": lambda m: m.default["a"].append(1),
        "pair": lambda m: setattr(m, "pair", (m.pair[0] + 1, m.pair[1] + 1)),
    }


def seen(value: Any) -> Any:
    """A value with its tensors as lists."""
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {key: seen(member) for key, member in value.items()}
    if isinstance(value, (list, tuple)):
        return [seen(member) for member in value]
    return value


def state(module: Holder) -> Any:
    own = set(vars(nn.Module())) - {"training", "_buffers", "_parameters"}
    return {key: seen(value) for key, value in vars(module).items() if key not in own}


@given(
    st.lists(st.sampled_from(sorted(changes())), max_size=4),
    st.lists(st.sampled_from(sorted(changes())), max_size=3),
)
def test_any_run_starts_again_from_the_same_state_and_leaves_no_trace(
    before: list[str], names: list[str]
) -> None:
    module = Holder()

    def run(sequence: list[str]) -> None:
        for name in sequence:
            if applies(module, name):
                changes()[name](module)

    run(before)
    start = state(module)
    watch = StateWatch(module.modules())
    run(names)
    end = state(module)
    identities = {key: id(value) for key, value in vars(module).items()}
    kept, values = watch.before()
    for _ in range(2):
        with kept.restored(values):
            assert state(module) == start
            assert list(state(module)) == list(start)
            run(names)
            assert state(module) == end
        assert state(module) == end
        assert list(state(module)) == list(end)
        assert {key: id(value) for key, value in vars(module).items()} == identities


def applies(module: Holder, name: str) -> bool:
    """Whether what the change needs has not been removed by one before it."""
    if name in ("setting", "attribute gone"):
        return hasattr(module, "name")
    return name not in ("memory", "memory written") or "v" in module.memory


@pytest.mark.parametrize("name", changes())
def test_each_kind_of_state_is_put_back(name: str) -> None:
    module = Holder()
    start = state(module)
    watch = StateWatch(module.modules())
    changes()[name](module)
    end = state(module)
    assert (end == start) is (name == "nothing")
    kept, values = watch.before()
    with kept.restored(values):
        assert state(module) == start
    assert state(module) == end


def test_what_holds_now_comes_back_after_an_error_too() -> None:
    module = Holder()
    watch = StateWatch([module])
    module.v = 5
    kept, values = watch.before()
    found: list[Any] = []

    def fail() -> None:
        with kept.restored(values):
            found.append(module.v)
            raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"):
        fail()
    assert found == [0.0]
    assert module.v == 5


def test_values_of_tensors_are_given_out_and_not_kept() -> None:
    module = Holder()
    module.v = torch.ones(3)
    watch = StateWatch([module])
    module.v = module.v + 1
    kept, values = watch.before()
    assert sum(torch.equal(value, torch.ones(3)) for value in values) >= 1
    assert not any(
        isinstance(value, Tensor)
        for slots, before in kept.entries
        if slots is vars(module)
        for value in before.values()
    )


def test_a_tensor_with_history_is_written_to_again_without_changing_what_is_kept() -> None:
    module = Holder()
    start = torch.ones(3, requires_grad=True)
    module.v = start * 2
    watch = StateWatch([module])
    module.v.mul_(3)
    kept, values = watch.before()
    for _ in range(2):
        with kept.restored(values):
            assert module.v.requires_grad
            assert module.v.tolist() == [2.0] * 3
            module.v.mul_(3)
    assert module.v.tolist() == [6.0] * 3


def test_a_tensor_that_modules_share_is_still_one() -> None:
    first, second = Holder(), Holder()
    second.buffer = first.buffer
    second.v = first.buffer
    watch = StateWatch([first, second])
    first.buffer.add_(1)
    kept, values = watch.before()
    with kept.restored(values):
        assert second.buffer is first.buffer
        assert second.v is first.buffer
        assert first.buffer.tolist() == [0.0] * 3
    assert second.buffer is first.buffer


def test_tensors_that_share_memory_cannot_be_put_back_once_written_to() -> None:
    module = Holder()
    module.v = module.buffer[:2]
    watch = StateWatch([module])
    module.v.add_(1)
    with pytest.raises(RecomputationError, match="changed in place by the segment"):
        watch.before()


def test_a_written_tensor_of_which_there_is_no_copy_is_an_error() -> None:
    record, pair = Holder(), Holder()
    record.record = [torch.zeros(2) for _ in range(100)]
    for module, tensor in ((record, record.record[3]), (pair, pair.pair[0])):
        watch = StateWatch([module])
        tensor.add_(1)
        with pytest.raises(RecomputationError, match="changed in place by the segment"):
            watch.before()


def test_a_long_record_that_only_grows_is_put_back() -> None:
    module = Holder()
    module.record = [torch.zeros(2) for _ in range(100)]
    watch = StateWatch([module])
    module.record.append(torch.ones(2))
    kept, values = watch.before()
    with kept.restored(values):
        assert len(module.record) == 100
    assert len(module.record) == 101


@pytest.mark.parametrize("change", ["parameter", "buffer", "member"])
def test_what_is_written_to_later_is_an_error_that_names_it(change: str) -> None:
    module = nn.Linear(2, 2)
    module.register_buffer("large", torch.zeros(1 << 17))
    module.pair = (torch.zeros(2),)
    kept, values = StateWatch([module]).before()
    with torch.no_grad():
        {"parameter": module.weight, "buffer": module.large, "member": module.pair[0]}[change].add_(
            1
        )
    name = {"parameter": "parameter 'weight' of a Linear", "buffer": "tensor 'large'"}
    with (
        pytest.raises(RecomputationError, match=name.get(change, "tensor 'pair'")),
        kept.restored(values),
    ):
        pass


def test_a_parameter_that_is_lent_for_one_run_is_there_again() -> None:
    module = nn.Linear(2, 2)
    own = module.weight
    lent = torch.full((2, 2), 7.0, requires_grad=True)
    module._parameters["weight"] = lent
    watch = StateWatch([module])
    kept, values = watch.before()
    module._parameters["weight"] = own
    assert any(value is lent for value in values)
    with kept.restored(values):
        assert torch.equal(module.weight, lent)
    assert module.weight is own


def test_the_last_step_of_a_sequence_gets_a_storage_of_its_own() -> None:
    node, kept = LIFNode(step_mode="m"), torch.zeros(5, 4)[0]
    node.v = kept
    watch = StateWatch([node])
    watch.release_histories()
    assert node.v is kept  # it was there before
    sequence = torch.rand(6, 4, requires_grad=True) * 2
    node.v = sequence[-1]
    watch.release_histories()
    assert node.v.untyped_storage().nbytes() == 4 * 4
    assert torch.equal(node.v, sequence[-1])
    assert node.v.grad_fn is not None
