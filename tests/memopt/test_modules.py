"""Modules by their path: found with their parent, or an error that says what there is."""

from __future__ import annotations

import pytest
from torch import nn

from snnfx.errors import ModulePathError
from snnfx.memopt.modules import get_module_and_parent


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(2, 2)
        self.again = self.stem
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.Identity()])
        self.heads = nn.ModuleDict({"class": nn.Linear(2, 3), "box": nn.Sequential(nn.ReLU())})
        self.unused = None
        self.register_module("empty", None)


@pytest.mark.parametrize(
    ("path", "parent_path", "name"),
    [
        ("stem", "", "stem"),
        ("again", "", "again"),
        ("blocks.1", "blocks", "1"),
        ("blocks.0.1", "blocks.0", "1"),
        ("heads.class", "heads", "class"),
        ("heads.box.0", "heads.box", "0"),
    ],
)
def test_a_module_is_found_with_its_parent_and_name(path: str, parent_path: str, name: str) -> None:
    net = Net()
    expected = (net.get_submodule(path), net.get_submodule(parent_path), name)
    assert get_module_and_parent(net, path) == expected


def test_every_module_but_the_root_is_found_and_can_be_replaced() -> None:
    net = Net()
    for path, module in list(net.named_modules(remove_duplicate=False))[:0:-1]:
        found, parent, name = get_module_and_parent(net, path)
        assert found is module
        setattr(parent, name, other := nn.Tanh())
        assert net.get_submodule(path) is other


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("stern", r"the model \(Net\) has no part 'stern'; it has 'stem', 'again', 'blocks', 'hea"),
        ("blocks.2", r"'blocks' \(ModuleList\) has no part '2'; it has '0', '1'$"),
        ("blocks.-1", r"'blocks' \(ModuleList\) has no part '-1'"),
        ("blocks.0.x.y", r"'blocks\.0\.x\.y': 'blocks\.0' \(Sequential\) has no part 'x'"),
        ("heads.mask", r"'heads' \(ModuleDict\) has no part 'mask'; it has 'class', 'box'$"),
        ("stem.weight", r"'stem' \(Linear\) has no part 'weight'; it has no modules$"),
        ("empty", "has no part 'empty'"),
        ("unused", "has no part 'unused'"),
        ("stem.", r"'stem' \(Linear\) has no part ''"),
        ("", r"the empty path is the model itself \(Net\).*'stem'"),
    ],
)
def test_a_path_without_a_module_is_an_error_that_names_the_part(path: str, expected: str) -> None:
    with pytest.raises(ModulePathError, match=expected):
        get_module_and_parent(Net(), path)


def test_the_error_is_an_attribute_error_as_torch_raises() -> None:
    with pytest.raises(AttributeError):
        get_module_and_parent(Net(), "missing")


def test_a_long_list_is_not_printed_whole() -> None:
    net = nn.Sequential(*(nn.ReLU() for _ in range(30)))
    with pytest.raises(ModulePathError, match=r"'19', and 10 more$"):
        get_module_and_parent(net, "30")
