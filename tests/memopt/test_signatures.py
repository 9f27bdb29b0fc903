"""Signatures are the documented ones: names, order, kinds and defaults of all parameters."""

from __future__ import annotations

import ast
import inspect
import re
from importlib import import_module
from typing import Any, NamedTuple

import pytest

from tests.sources import ROOT

DOCUMENTED = (ROOT / "tests/reference/memopt_signatures.txt").read_text().splitlines()
LINE = re.compile(r"(?:class )?(?P<name>[\w.]+)(?P<parameters>\(.*\))(?: [^()]*)?")
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
FACTORY = "<factory>"
REQUIRED = inspect.Parameter.empty


class Parameter(NamedTuple):
    name: str
    kind: str
    default: Any


def documented_parameters(line: str) -> tuple[str, list[Parameter]]:
    """The dotted name in a documented line, and its parameters.

    Documentation writes an unknown default as ``<factory>``, which is no Python.
    """
    found = LINE.fullmatch(line)
    assert found, f"not a signature: {line}"
    source = found["parameters"].replace(FACTORY, repr(FACTORY))
    (function,) = ast.parse(f"def f{source}: ...").body
    assert isinstance(function, ast.FunctionDef)
    return found["name"], list(parameters_of(function.args))


def parameters_of(arguments: ast.arguments) -> list[Parameter]:
    positional = [*arguments.posonlyargs, *arguments.args]
    required = [None] * (len(positional) - len(arguments.defaults))
    both = "POSITIONAL_OR_KEYWORD"
    found = [
        Parameter(argument.arg, both, default_of(default))
        for argument, default in zip(positional, [*required, *arguments.defaults], strict=True)
    ]
    if arguments.vararg:
        found.append(Parameter(arguments.vararg.arg, "VAR_POSITIONAL", REQUIRED))
    found += [
        Parameter(argument.arg, "KEYWORD_ONLY", default_of(default))
        for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    ]
    return found


def default_of(node: ast.expr | None) -> Any:
    return REQUIRED if node is None else ast.literal_eval(node)


def our_parameters(name: str) -> list[Parameter]:
    """The parameters of our class, function or method, without a method's `self`."""
    first, _, method = name.partition(".")
    (home,) = [module for module, names in HOMES.items() if first in names]
    found = getattr(import_module(home), first)
    if not method:
        return describe(inspect.signature(found))
    return describe(inspect.signature(getattr(found, method)))[1:]


def describe(signature: inspect.Signature) -> list[Parameter]:
    return [
        Parameter(p.name, p.kind.name, FACTORY if repr(p.default) == FACTORY else p.default)
        for p in signature.parameters.values()
    ]


def same(ours: list[Parameter], documented: list[Parameter]) -> bool:
    """Whether all agree; True and 1 are different defaults."""
    typed = [[(*p, type(p.default)) for p in each] for each in (ours, documented)]
    return typed[0] == typed[1]


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
