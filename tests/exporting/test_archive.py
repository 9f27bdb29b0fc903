"""Exported files: what they hold, and what is refused of them."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import snnfx
from snnfx.errors import ExportError, OptionError

from tests.exporting.training import assert_same, train
from tests.models import NETS


class Tied(nn.Module):
    """Two layers with one weight, a constant, and buffers of several kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.second = nn.Linear(6, 6, bias=False)
        self.second.weight = self.first.weight
        self.register_buffer("mask", torch.tensor([True, False] * 3), persistent=False)
        self.register_buffer("bf16", torch.ones(6, dtype=torch.bfloat16).mul(0.3))
        self.register_buffer("empty", torch.empty(0, 3))
        self.table = torch.arange(6.0)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.where(self.mask, self.first(x), self.table) * self.bf16.float()
        return self.second(hidden) + torch.tensor(0.5)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = NETS["spiking_mlp"]()
    path = tmp_path_factory.mktemp("exported") / "net.snnfx"
    snnfx.export(work.model, work.inputs, path, level=1)
    return path


def rewritten_file(source: Path, target: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    """A copy of an archive with changed members."""
    with zipfile.ZipFile(source) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(target, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return target


def edited(member: str, change: Callable[[Any], Any]) -> Callable[[dict[str, bytes]], None]:
    """A change of one member that is JSON."""

    def apply(members: dict[str, bytes]) -> None:
        data = json.loads(members[member])
        result = change(data)
        members[member] = json.dumps(data if result is None else result).encode()

    return apply


def test_a_loaded_model_has_the_state_of_the_model_and_its_own_memory(tmp_path: Path) -> None:
    model, x = Tied(), torch.randn(3, 6)
    snnfx.export(model, x, tmp_path / "tied.snnfx")
    loaded = snnfx.load(tmp_path / "tied.snnfx")
    expected, state = model.state_dict(), loaded.state_dict()
    assert list(state) == list(expected)
    for name, tensor in expected.items():
        assert torch.equal(state[name], tensor)
        assert state[name].dtype is tensor.dtype
        assert not tensor.numel() or state[name].data_ptr() != tensor.data_ptr()
    assert loaded.get_parameter("first.weight") is loaded.get_parameter("second.weight")
    assert torch.equal(loaded.get_buffer("mask"), model.mask)
    assert_same(train(loaded, [(x,)] * 3), train(model, [(x,)] * 3))


def test_a_state_dict_of_the_model_can_be_loaded_into_a_loaded_one(tmp_path: Path) -> None:
    model, x = Tied(), torch.randn(3, 6)
    snnfx.export(model, x, tmp_path / "tied.snnfx")
    other = Tied()
    loaded = snnfx.load(tmp_path / "tied.snnfx")
    loaded.load_state_dict(other.state_dict())
    assert torch.equal(loaded(x), other(x))


def test_frozen_parameters_and_layouts_stay_what_they_are(tmp_path: Path) -> None:
    model = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    model.bias.requires_grad_(False)  # type: ignore[union-attr]
    snnfx.export(model, torch.randn(2, 3, 5, 5), tmp_path / "conv.snnfx")
    loaded = snnfx.load(tmp_path / "conv.snnfx")
    assert not loaded.get_parameter("bias").requires_grad
    assert loaded.get_parameter("weight").is_contiguous(memory_format=torch.channels_last)


def test_the_plan_comes_with_the_file(exported: Path) -> None:
    work = NETS["spiking_mlp"]()
    plan = snnfx.load(exported).plan
    assert plan is not None
    assert plan.applied
    assert plan == snnfx.rewrite(work.model, work.inputs, level=1).plan


def test_regions_of_a_loaded_model_are_compiled_on_request(exported: Path) -> None:
    work = NETS["spiking_mlp"]()
    loaded = snnfx.load(exported, lowering="inductor")
    assert loaded.steps["train"].outlines is not None
    assert_same(train(loaded, [work.inputs]), train(work.model, [work.inputs]), 1e-5)
    with pytest.raises(OptionError, match="allowed: 'inductor', 'eager'"):
        snnfx.load(exported, lowering="fast")


def test_inference_alone_is_one_graph(tmp_path: Path) -> None:
    work = NETS["spiking_mlp"]()
    snnfx.export(work.model, work.inputs, tmp_path / "net.snnfx", train=False)
    with zipfile.ZipFile(tmp_path / "net.snnfx") as archive:
        assert {n for n in archive.namelist() if "tensors" not in n} == {
            "signature.json", "eval/forward.json",
        }  # fmt: skip
    work.before_step()
    assert torch.equal(snnfx.load(tmp_path / "net.snnfx")(*work.inputs), work.model(*work.inputs))


def test_nothing_is_unpickled(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a file is being unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    loaded = snnfx.load(exported)
    assert loaded(*NETS["spiking_mlp"]().inputs).requires_grad


class Payload:
    """Runs when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_a_pickle_in_the_place_of_a_file_or_of_a_part_is_not_run(
    exported: Path, tmp_path: Path
) -> None:
    trace = tmp_path / "was run"
    code = pickle.dumps(Payload(trace))
    whole, part = tmp_path / "whole", tmp_path / "part"
    whole.write_bytes(code)
    torch.save(Payload(trace), tmp_path / "torch")
    for member in ("signature.json", "train/forward.json", "tensors/0"):
        rewritten_file(exported, part, lambda m, name=member: m.update({name: code}))
        with pytest.raises(ExportError, match=r"is not a file of|of the size of"):
            snnfx.load(part)
    for path, text in ((whole, "is not a file of"), (tmp_path / "torch", "has no signature.json")):
        with pytest.raises(ExportError, match=text):
            snnfx.load(path)
    assert not trace.exists()
    pickle.loads(code)
    assert trace.exists()  # so it would have shown


def set_target(target: str) -> Callable[[Any], None]:
    def change(nodes: Any) -> None:
        next(n for n in nodes if n["op"] == "call_function")["target"] = target

    return change


def signature(data: Any) -> Any:
    return data["steps"]["train"]["signature"]


DAMAGE: dict[str, tuple[Callable[[dict[str, bytes]], None], str]] = {
    "version": (edited("signature.json", lambda s: s.update(version=2)), "reads version 1"),
    "format": (edited("signature.json", lambda s: s.update(format="x")), "is not a file of"),
    "code": (edited("train/forward.json", set_target("os.system")), "may call only operators"),
    "file": (edited("eval/backward.json", set_target("aten.from_file.default")), "filename"),
    "no graph": (lambda members: members.pop("eval/backward.json") and None, "has no eval/back"),
    "no tensor": (lambda members: members.pop("tensors/1") and None, "tensor 1 .* is missing"),
    "short tensor": (lambda members: members.update({"tensors/0": b"123"}), "not of the size"),
    "fewer ends": (edited("train/forward.json", lambda n: n[1:]), "not an argument"),
    "other mode": (
        edited("signature.json", lambda s: s["steps"].update(test=s["steps"].pop("train"))),
        "has no test/forward.json",
    ),
    "primals": (
        edited(
            "signature.json", lambda s: s["steps"]["train"]["signature"]["primals"].pop() and None
        ),
        "do not have the ends",
    ),
    "mutated": (
        edited("signature.json", lambda s: signature(s).update(mutated=[99])),
        "do not have the ends",
    ),
    "parameter": (
        edited("signature.json", lambda s: s["parameters"].pop("first.weight") and None),
        "there is no parameter 'first.weight'",
    ),
    "number": (
        edited("signature.json", lambda s: s["parameters"]["first.bias"].update(tensor=99)),
        "none of the number 99",
    ),
    "dtype": (
        edited("signature.json", lambda s: s["tensors"][0].update(dtype="object")),
        "unknown dtype",
    ),
    "plan": (lambda members: members.update({"train/plan.json": b"{}"}), "is not a file of"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_file_with_something_else_in_it_is_refused(
    case: str, exported: Path, tmp_path: Path
) -> None:
    change, text = DAMAGE[case]
    with pytest.raises(ExportError, match=text):
        snnfx.load(rewritten_file(exported, tmp_path / "damaged", change))


def test_a_file_that_is_cut_off_or_missing_is_refused(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "cut").write_bytes(exported.read_bytes()[:2000])
    with pytest.raises(ExportError, match=r"is not a file of snnfx\.export"):
        snnfx.load(tmp_path / "cut")
    with pytest.raises(FileNotFoundError, match="nothing here"):
        snnfx.load(tmp_path / "nothing here")


def test_only_modules_are_exported_and_only_to_folders_that_are_there(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"only a torch\.nn\.Module"):
        snnfx.export(torch.sin, torch.ones(2), tmp_path / "sin")  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match="nowhere"):
        snnfx.export(nn.Linear(2, 2), torch.ones(2, 2), tmp_path / "nowhere" / "linear")
