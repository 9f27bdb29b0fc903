"""Signatures as documentation writes them, and as Python has them."""

from __future__ import annotations

import ast
import inspect
import re
from typing import Any, NamedTuple

LINE = re.compile(r"(?:class )?(?P<name>[\w.]+)(?P<parameters>\(.*\))(?: [^()]*)?")
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


def describe(signature: inspect.Signature) -> list[Parameter]:
    return [
        Parameter(p.name, p.kind.name, FACTORY if repr(p.default) == FACTORY else p.default)
        for p in signature.parameters.values()
    ]


def same(ours: list[Parameter], documented: list[Parameter]) -> bool:
    """Whether all agree; True and 1 are different defaults."""
    typed = [[(*p, type(p.default)) for p in each] for each in (ours, documented)]
    return typed[0] == typed[1]
