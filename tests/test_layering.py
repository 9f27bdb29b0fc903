"""Who may import whom, and which private parts of torch are touched where.

A file may import its own layer and the layers named for it, never one above. Private names of
torch change between releases: what needs one goes into `snnfx/_torch_compat.py`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sources import LIBRARY, dotted, imported_modules, label, module_name, parse, python_files

BASE = ("snnfx.errors", "snnfx.config", "snnfx._torch_compat", "snnfx.pictures")
GRAPH = (*BASE, "snnfx.passes.optable", "snnfx.passes.fxgraph")
EAGER = ("snnfx.base", "snnfx.surrogates", "snnfx.neurons")
PASSES = ("snnfx.passes.analysis", "snnfx.passes.cost", "snnfx.passes.plan", "snnfx.passes.rewrite")
BUILD = (*GRAPH, "snnfx.kernels", *PASSES, "snnfx.capture", "snnfx.lowering")
COMMANDS = (
    "snnfx.target",
    "snnfx.fit",
    "snnfx.progress",
    "snnfx.report",
    "snnfx.commands",
    "snnfx.count_command",
)
FRONT = ("snnfx.backend", *COMMANDS, "snnfx.cli", "snnfx.__main__")
EVERYTHING = ("snnfx",)

MAY_IMPORT: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(GRAPH, GRAPH),
    "snnfx.kernels": BASE,
    "snnfx.passes.analysis": (*GRAPH, "snnfx.kernels"),
    "snnfx.passes.cost": (*GRAPH, "snnfx.kernels", "snnfx.passes.analysis"),
    "snnfx.passes.plan": (*BASE, "snnfx.passes.analysis", "snnfx.passes.cost"),
    "snnfx.passes.rewrite": (*GRAPH, "snnfx.kernels", *PASSES),
    "snnfx.passes": (),
    "snnfx.capture": BUILD,
    "snnfx.lowering": BUILD,
    **dict.fromkeys(EAGER, (*BASE, *EAGER)),
    "snnfx.compression": BASE,
    "snnfx.compressors": (*BASE, "snnfx.kernels", "snnfx.compression"),
    "snnfx.module_state": BASE,
    "snnfx.recomputation": (*BASE, "snnfx.compressors", "snnfx.module_state"),
    "snnfx.eager": (*BUILD, "snnfx.module_state"),
    "snnfx.exporting": (*BUILD, "snnfx.module_state"),
    "snnfx.checkpointing": (
        *BASE,
        "snnfx.base",
        "snnfx.compressors",
        "snnfx.recomputation",
        "snnfx.eager",
    ),
    "snnfx.memopt": (*BUILD, "snnfx.compressors", "snnfx.checkpointing", "snnfx.eager"),
    "snnfx.op_counter": (
        *GRAPH,
        "snnfx.passes.analysis",
        "snnfx.passes.cost",
        "snnfx.base",
        "snnfx.neurons",
        "snnfx.module_state",
        "snnfx.capture",
        "snnfx.eager",
    ),
    "snnfx.adapters": BASE,
    "snnfx.graph_count": BASE,
    **dict.fromkeys(FRONT, EVERYTHING),
}
"""The layer of a file is the longest key that its name starts with."""

PRIVATE_ALLOWED: dict[str, tuple[str, ...]] = {
    "torch._ops": ("passes", "snnfx"),  # OpOverload, the type of every ATen target
    "torch._subclasses": ("passes", "snnfx"),  # FakeTensor, the type of every meta value
    "torch._C": ("passes/analysis/dataflow.py",),  # operator schemas have no public type
}
"""Private torch modules, and the files or folders that may use them outside the one place."""

FRAMEWORKS = {"spikingjelly", "snntorch", "norse", "sinabs"}
FILES = python_files(*LIBRARY)
LAYERED = [path for path in FILES if label(path) != "snnfx/__init__.py"]  # it names everything


def starts_with(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")


def layer_of(name: str) -> str | None:
    return max((key for key in MAY_IMPORT if starts_with(name, key)), key=len, default=None)


def above(name: str, tree: ast.AST) -> Iterator[str]:
    """The imports in a file that its layer does not allow."""
    layer = layer_of(name)
    assert layer is not None, f"{name} has no layer: add it to MAY_IMPORT"
    allowed = (layer, *MAY_IMPORT[layer])
    for imported, line in imported_modules(tree):
        if starts_with(imported, "snnfx") and not any(starts_with(imported, a) for a in allowed):
            yield f"line {line}: {layer} may not import {imported}"


def private_torch(tree: ast.AST) -> Iterator[str]:
    """The private torch modules that a file imports or reaches through attributes."""
    reached = [name for name, _ in imported_modules(tree)]
    reached += [name for node in ast.walk(tree) if (name := dotted(node))]
    for name in reached:
        parts = name.split(".")
        if parts[0] == "torch":
            ends = [i for i, part in enumerate(parts) if part.startswith("_") and part[1] != "_"]
            if ends:
                yield ".".join(parts[: ends[0] + 1])


def may_use(private: str, place: str) -> bool:
    if place == "snnfx/_torch_compat.py":
        return True
    owners = PRIVATE_ALLOWED.get(private, ())
    return any(place == owner or place.startswith(f"{owner}/") for owner in owners)


@pytest.mark.parametrize("path", LAYERED, ids=label)
def test_a_file_imports_only_what_lies_below_it(path: Path) -> None:
    assert list(above(module_name(path), parse(path))) == []


@pytest.mark.parametrize("path", FILES, ids=label)
def test_private_parts_of_torch_stay_in_one_place(path: Path) -> None:
    place = label(path)
    assert [name for name in private_torch(parse(path)) if not may_use(name, place)] == []


@pytest.mark.parametrize("path", FILES, ids=label)
def test_the_library_knows_no_framework(path: Path) -> None:
    names = {name.split(".")[0] for name, _ in imported_modules(parse(path))}
    assert not names & FRAMEWORKS


@pytest.mark.parametrize("path", python_files("passes/plan", "kernels"), ids=label)
def test_planners_and_kernels_know_no_graphs(path: Path) -> None:
    assert [n for n, _ in imported_modules(parse(path)) if starts_with(n, "torch.fx")] == []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("snnfx.passes.analysis.x", "from snnfx.passes.plan.segments import Plan"),
        ("snnfx.passes.plan.x", "import snnfx.passes.fxgraph"),
        ("snnfx.kernels.x", "from snnfx.passes import optable"),
        ("snnfx.neurons", "def f():\n    from snnfx.passes.cost import flops"),
    ],
)
def test_an_import_from_above_is_found(name: str, source: str) -> None:
    assert len(list(above(name, ast.parse(source)))) == 1


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from torch._inductor import config", "torch._inductor"),
        ("import torch._dynamo", "torch._dynamo"),
        ("x = torch.fx._symbolic_trace.Tracer", "torch.fx._symbolic_trace"),
        ("x = torch.__version__", None),
    ],
)
def test_private_torch_is_found(source: str, found: str | None) -> None:
    assert set(private_torch(ast.parse(source))) == ({found} if found else set())
