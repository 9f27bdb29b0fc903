"""No file and no function grows past what can be read in one go."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sources import LIBRARY, label, parse, python_files

MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60
MAX_KERNEL_LINES = 80
FILES = python_files(*LIBRARY, "examples", "tests")


def is_kernel(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any("triton.jit" in ast.unparse(decorator) for decorator in function.decorator_list)


def too_long(tree: ast.AST) -> Iterator[str]:
    """The functions over their limit; a decorator is not part of a function's length."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > (MAX_KERNEL_LINES if is_kernel(node) else MAX_FUNCTION_LINES):
                yield f"{node.name}: {lines} lines"


@pytest.mark.parametrize("path", FILES, ids=label)
def test_a_file_and_its_functions_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_FILE_LINES
    assert list(too_long(parse(path))) == []


def test_a_long_function_is_found_and_a_kernel_may_be_longer() -> None:
    body = "    x = 1\n" * 70
    assert list(too_long(ast.parse(f"def f():\n{body}"))) == ["f: 71 lines"]
    assert list(too_long(ast.parse(f"@triton.jit\ndef f():\n{body}"))) == []
