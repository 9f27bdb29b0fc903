"""Errors: all in one family, each with a text, and none swallowed by a handler for everything."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from snnfx import errors

from tests.sources import LIBRARY, label, parse, python_files

FILES = python_files(*LIBRARY)
NEEDS_NO_TEXT = {"NotImplementedError", "StopIteration"}
TOO_BROAD = {"Exception", "BaseException"}
CLASSES = [value for value in vars(errors).values() if isinstance(value, type)]


def silent_raises(tree: ast.AST) -> Iterator[str]:
    """Raised classes without a text; a re-raise and an abstract method are complete as they are."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Raise) or node.exc is None:
            continue
        called = isinstance(node.exc, ast.Call)
        error = node.exc.func if called else node.exc
        empty = not node.exc.args if called else isinstance(error, ast.Name) and is_class(error.id)
        if empty and ast.unparse(error) not in NEEDS_NO_TEXT:
            yield f"line {node.lineno}: {ast.unparse(node)}"


def is_class(name: str) -> bool:
    return name[0].isupper()


def broad_handlers(tree: ast.AST) -> Iterator[str]:
    """Handlers that catch everything."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            caught = (
                {n.id for n in ast.walk(node.type) if isinstance(n, ast.Name)}
                if node.type
                else TOO_BROAD
            )
            if caught & TOO_BROAD:
                yield f"line {node.lineno}"


@pytest.mark.parametrize("path", FILES, ids=label)
def test_every_error_says_something(path: Path) -> None:
    assert list(silent_raises(parse(path))) == []


@pytest.mark.parametrize("path", [*FILES, *python_files("examples")], ids=label)
def test_no_handler_catches_everything(path: Path) -> None:
    assert list(broad_handlers(parse(path))) == []


@pytest.mark.parametrize("error", CLASSES, ids=lambda error: error.__name__)
def test_every_error_is_of_one_family_and_documented(error: type) -> None:
    assert issubclass(error, errors.SnnfxError | errors.SnnfxWarning)
    assert error.__doc__


def test_what_the_checks_look_for_is_found() -> None:
    assert len(list(silent_raises(ast.parse("raise ValueError")))) == 1
    assert len(list(silent_raises(ast.parse("raise ValueError()")))) == 1
    assert list(silent_raises(ast.parse("raise ValueError('x is 3')"))) == []
    assert len(list(broad_handlers(ast.parse("try:\n    f()\nexcept Exception:\n    pass")))) == 1
    assert len(list(broad_handlers(ast.parse("try:\n    f()\nexcept:\n    pass")))) == 1
