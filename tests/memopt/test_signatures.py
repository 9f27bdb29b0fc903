"""Signatures are the documented ones: names, order, kinds and defaults of all parameters."""

from __future__ import annotations

import inspect
from importlib import import_module

import pytest

from tests.signatures import Parameter, describe, documented_parameters, same
from tests.sources import ROOT

DOCUMENTED = (ROOT / "tests/reference/memopt_signatures.txt").read_text().splitlines()
HOMES = {
    "snnfx.memopt": (
        "MemOptSummary",
        "apply_gc",
        "get_module_and_parent",
        "memory_optimization",
        "resolve_device",
    ),
    "snnfx.checkpointing": (
        "GCContainer",
        "TCGCContainer",
        "in_gc_1st_forward",
        "input_compressed_gc",
        "query_autocast",
        "to_gc_function",
    ),
}


def our_parameters(name: str) -> list[Parameter]:
    """The parameters of our class, function or method, without a method's `self`."""
    first, _, method = name.partition(".")
    (home,) = [module for module, names in HOMES.items() if first in names]
    found = getattr(import_module(home), first)
    if not method:
        return describe(inspect.signature(found))
    return describe(inspect.signature(getattr(found, method)))[1:]


@pytest.mark.parametrize("line", DOCUMENTED, ids=lambda line: line.partition("(")[0])
def test_a_signature_is_the_documented_one(line: str) -> None:
    name, documented = documented_parameters(line)
    ours = our_parameters(name)
    assert ours == documented
    assert same(ours, documented)


def test_every_public_name_has_a_documented_line() -> None:
    names = {documented_parameters(line)[0] for line in DOCUMENTED}
    assert {name for name in names if "." not in name} == {n for m in HOMES.values() for n in m}


@pytest.mark.parametrize(
    "source",
    [
        "class A(x, *args)",
        "A(x, *args, n: int = 2)",
        "A(x, n: int = 1, *args)",
        "A(x, *args, m: int = 1)",
        "A(x, *args, n: int)",
        "A(x, *args, n: bool = True)",
        "A(y, *args, n: int = 1) int | Tuple[int]",
        "A(x, *others, n: int = 1)",
        "A(x=None, *args, n: int = 1)",
        "A(x, *args, n: list = <factory>)",
    ],
)
def test_any_difference_is_found(source: str) -> None:
    def ours(x: object, *args: object, n: int = 1) -> None:
        del x, args, n

    documented = documented_parameters("A(x: str | None, *args, n: int = 1) Tuple[str, dtype]")[1]
    assert same(describe(inspect.signature(ours)), documented)
    assert not same(describe(inspect.signature(ours)), documented_parameters(source)[1])
