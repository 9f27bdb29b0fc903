"""Targets of the command line: found by name, called without allocating, for any batch."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from snnfx.errors import TargetError
from snnfx.target import Built, Target, load_target

from tests.sources import ROOT

SOURCE = """
import torch
from torch import nn
import neighbour

def net(batch=2):
    return nn.Linear(4, 3), torch.rand(5, batch, 4)

def sized(n):
    return nn.Linear(4, 3), (torch.rand(n, 4),)

def fixed():
    x = torch.rand(5, 2, 4, requires_grad=True)
    return nn.Linear(4, 3), [x, torch.rand(2, 3), torch.rand(5, 2), torch.rand(7)]

def moving(batch=2):
    model = nn.Linear(4, 3).to("cpu").cuda().half().cpu().to("cuda:1", torch.float64)
    x = torch.rand(batch, 4, device="cuda:0", generator=torch.Generator()).to(device="cpu")
    return model, x.pin_memory()

def huge():
    return nn.Linear(300_000, 300_000), torch.rand(2, 300_000)

def rates():
    return nn.Dropout(torch.linspace(0, 0.5, 3)[2].item()), torch.rand(2)

def reading(batch=2):
    x = torch.rand(batch, 4)
    return nn.Linear(4, 3 if x.sum() > -1 else 4), x

class Odd(Exception):
    pass

def failing():
    raise Odd("no data set here\\nsecond line")

def number():
    return 3

def no_model():
    return 3, torch.rand(2)

def no_inputs():
    return nn.Linear(4, 3), 3
"""


@pytest.fixture(autouse=True)
def same_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    for name in set(sys.modules) - before:
        if name.startswith(("_snnfx_target", "neighbour", "nets")):
            del sys.modules[name]


@pytest.fixture
def nets(tmp_path: Path) -> Path:
    (tmp_path / "neighbour.py").write_text("")
    path = tmp_path / "nets.py"
    path.write_text(SOURCE)
    return path


def shapes(built: Built) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape) for tensor in built.inputs]


def test_a_file_is_loaded_as_if_it_were_run(nets: Path) -> None:
    target = load_target(f"{nets}:net")
    assert target.batch_argument == "batch"
    assert shapes(target.build()) == [(5, 2, 4)]
    assert shapes(target.build(7)) == [(5, 7, 4)]


def test_a_module_is_imported_from_the_current_directory(
    nets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(nets.parent)
    assert shapes(load_target("nets:sized").build(3)) == [(3, 4)]


def test_tensors_take_no_memory_whatever_device_is_asked_for(nets: Path) -> None:
    built = load_target(f"{nets}:moving").build(6)
    assert all(p.is_meta and p.dtype is torch.float64 for p in built.model.parameters())
    assert built.inputs[0].is_meta
    assert built.inputs[0].shape == (6, 4)
    assert not torch.rand(2).is_meta


def test_a_model_bigger_than_the_machine_is_built(nets: Path) -> None:
    built = load_target(f"{nets}:huge").build()
    assert sum(p.nbytes for p in built.model.parameters()) > 300e9


def test_rates_may_be_read_from_a_table(nets: Path) -> None:
    assert load_target(f"{nets}:rates").build().model.p == 0.5


def test_inputs_are_resized_along_the_dimension_that_is_named(nets: Path) -> None:
    target = load_target(f"{nets}:fixed", batch_dim=1)
    assert shapes(target.build()) == [(5, 2, 4), (2, 3), (5, 2), (7,)]
    built = target.build(9)
    assert shapes(built) == [(5, 9, 4), (2, 3), (5, 9), (7,)]
    assert [x.requires_grad for x in built.inputs] == [True, False, False, False]


def test_a_target_can_be_built_with_real_tensors(nets: Path) -> None:
    built = load_target(f"{nets}:reading", real=True).build(4)
    assert not any(t.is_meta for t in (*built.model.parameters(), *built.inputs))
    assert built.inputs[0].shape == (4, 4)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nets", "names no function"),
        (":net", "names no function"),
        ("no_such_module:net", "'no_such_module' cannot be imported: ModuleNotFoundError"),
        ("no/such/file.py:net", r"there is no file 'no/such/file\.py'"),
        ("{nets}:nothing", "has no function 'nothing'; it has 'net', 'sized'"),
        ("{folder}/broken.py:net", r"broken\.py' cannot be imported.*SyntaxError"),
        ("{folder}/raising.py:net", r"cannot be imported at .*raising\.py:1: ZeroDivisionError"),
    ],
)
def test_a_name_that_leads_nowhere_is_an_error_that_says_so(
    name: str, message: str, nets: Path
) -> None:
    (nets.parent / "broken.py").write_text("def net(:")
    (nets.parent / "raising.py").write_text("1 / 0")
    with pytest.raises(TargetError, match=message):
        load_target(name.format(nets=nets, folder=nets.parent))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("reading", r"nets\.py:\d+: .*all tensors on the meta device.*--real"),
        ("failing", r"failing failed at .*nets\.py:\d+: Odd: no data set here\."),
        ("number", r"must return \(model, example_inputs\).*type int"),
        ("no_model", r"the model is of type int, not a torch\.nn\.Module"),
        ("no_inputs", "the inputs are of type int"),
    ],
)
def test_a_function_that_fails_is_an_error_with_its_place(
    function: str, message: str, nets: Path
) -> None:
    target = load_target(f"{nets}:{function}")
    with pytest.raises(TargetError, match=message) as caught:
        target.build()
    assert "\n" not in str(caught.value)
    assert not torch.rand(2).is_meta


@pytest.mark.parametrize(
    ("function", "dim", "batch", "message"),
    [
        ("sized", None, None, "no default for 'n': give --batch"),
        ("fixed", None, 4, "--batch-dim which dimension"),
        ("fixed", 3, 4, r"no dimension 3: \(5, 2, 4\), \(2, 3\)"),
    ],
)
def test_a_batch_that_cannot_be_chosen_is_an_error(
    function: str, dim: int | None, batch: int | None, message: str, nets: Path
) -> None:
    with pytest.raises(TargetError, match=message):
        load_target(f"{nets}:{function}", dim).build(batch)


def test_the_example_is_a_target() -> None:
    built = load_target(f"{ROOT}/examples/fit_vgg.py:vgg").build(3)
    assert shapes(built) == [(10, 3, 2, 48, 48)]
    assert all(p.is_meta for p in built.model.parameters())


def test_an_interrupt_is_not_taken_for_an_error() -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt("stop")

    with pytest.raises(KeyboardInterrupt):
        Target("x", interrupted, None).build()
