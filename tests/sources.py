"""The project's own source files, as tests about the sources see them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = ("snnfx", "passes", "kernels")


def python_files(*folders: str) -> list[Path]:
    """All Python files under `folders` of the repository, each once: symlinks are not followed."""
    found = [path for folder in folders for path in walk(ROOT / folder)]
    assert found, f"no Python files under {folders}"
    return sorted(found)


def walk(folder: Path) -> Iterator[Path]:
    """Python files under `folder`, without those behind a symlink to another folder."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            yield from walk(path)
        elif path.suffix == ".py":
            yield path


def label(path: Path) -> str:
    """The path from the repository's root, for messages and test names."""
    return path.relative_to(ROOT).as_posix()


def module_name(path: Path) -> str:
    """The name a library file is imported by: `passes/cost/x.py` is `snnfx.passes.cost.x`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "snnfx" else ("snnfx", *parts)
    return ".".join(part for part in parts if part != "__init__")


def parse(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(), filename=str(path))


def imported_modules(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every dotted name that the file imports or imports from, with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def dotted(node: ast.AST) -> str | None:
    """The text of an attribute chain such as `torch._C.Node`, or None for other expressions."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (before := dotted(node.value)):
        return f"{before}.{node.attr}"
    return None
