"""Graphs as data, and back, without trusting the data.

A graph becomes a list of its nodes, with every argument tagged by its type. Reading it builds the
nodes one by one through the interface of `torch.fx`, so nothing in it is ever run as code of
Python:

- a call's target is looked up by name among the operators of `NAMESPACES` and the functions of
  `FUNCTIONS`; operators that write to their arguments or take a text that is not in `TEXTS` (a file
  name, say) are refused;
- names become identifiers of generated code, so they must be plain ones;
- an argument is a node that came before, a number, a text, or a constant of torch by its name.

`torch.export.load` is no way to do this: its archives hold pickled parts.
"""

from __future__ import annotations

import keyword
import math
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Graph, GraphModule, Node

import snnfx.kernels.ops  # noqa: F401  # pyright: ignore[reportUnusedImport]  # registers operators
from snnfx.errors import ExportError
from snnfx.exporting.signature import DTYPES
from snnfx.passes.fxgraph import is_late, output_args, set_late, set_tile, tile_of

NAMESPACES = ("aten", "prims", "snnfx")
FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{f"operator.{name}": getattr(operator, name) for name in (
        "getitem", "add", "sub", "mul", "floordiv", "truediv", "mod", "neg",
        "eq", "ne", "lt", "le", "gt", "ge",
    )},
    **{f"torch.{name}": getattr(torch, name) for name in (
        "sym_max", "sym_min", "sym_int", "sym_float", "sym_not", "sym_ite",
    )},
    "math.ceil": math.ceil,
    "math.floor": math.floor,
}  # fmt: skip
"""What a graph may call besides operators: picking a result, and arithmetic on sizes."""

TEXTS = ("layout", "rounding_mode", "approximate", "reduce", "norm", "ord", "indexing", "mode")
"""The arguments of operators that may be texts."""

CONSTANTS: dict[str, dict[str, Any]] = {
    "dtype": DTYPES,
    "layout": {"strided": torch.strided},
    "memory_format": {
        str(f).removeprefix("torch."): f
        for f in vars(torch).values()
        if isinstance(f, torch.memory_format)
    },
}
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_DEVICE = re.compile(r"[a-z]+(:[0-9]+)?")
_NAMES = {function: name for name, function in FUNCTIONS.items()}


def graph_to_data(module: GraphModule) -> list[dict[str, Any]]:
    """The nodes of a graph as data for JSON.

    Raises:
        ExportError: an operator or argument has no form in a file.
    """
    return [_node_data(node) for node in module.graph.nodes]


def data_to_graph(data: Any, constants: Mapping[str, Tensor]) -> GraphModule:
    """A graph from a file.

    Args:
        data: of `graph_to_data`, or of anybody.
        constants: the tensors that ``get_attr`` nodes read.

    Raises:
        ExportError: `data` is anything but a graph of known operators.
    """
    graph = Graph()
    made: dict[str, Node] = {}
    if not isinstance(data, list) or not data:
        raise ExportError("a graph in an exported file is a list of nodes")
    for item in data[:-1]:
        node = _read_node(graph, item, made, constants)
        made[node.name] = node
    end = data[-1]
    if not isinstance(end, dict) or end.get("op") != "output":
        raise ExportError("the last node of a graph in an exported file is its output")
    graph.output(tuple(_read_argument(item, made) for item in _list(end.get("args"))))
    graph.lint()
    return GraphModule(dict(constants), graph)


def check_graph(module: GraphModule) -> None:
    """Hold that a graph calls nothing that a file may not hold.

    Raises:
        ExportError: it does.
    """
    for node in module.graph.nodes:
        if node.op == "call_function":
            _target_name(node)


def is_plain(name: object) -> bool:
    """Whether something can stand as a name in generated code."""
    return isinstance(name, str) and bool(_PLAIN.fullmatch(name)) and not keyword.iskeyword(name)


def _node_data(node: Node) -> dict[str, Any]:
    if node.op == "output":
        return {"op": "output", "args": [_argument_data(a, node) for a in output_args(node.graph)]}
    data: dict[str, Any] = {"op": node.op, "name": node.name}
    if node.op == "call_function":
        data["target"] = _target_name(node)
        data["args"] = [_argument_data(argument, node) for argument in node.args]
        if node.kwargs:
            data["kwargs"] = {k: _argument_data(v, node) for k, v in node.kwargs.items()}
    elif node.op == "get_attr":
        data["target"] = str(node.target)
    if is_late(node):
        data["late"] = True
    tile = tile_of(node)
    if tile is not None:
        data["tile"] = list(tile)
    return data


def _target_name(node: Node) -> str:
    target = node.target
    if isinstance(target, OpOverload):
        reason = _why_refused(target)
        if reason is not None:
            raise ExportError(
                f"node '{node.name}' calls {target}, which cannot be exported: {reason}"
            )
        return str(target)
    if target in _NAMES:
        return _NAMES[target]  # type: ignore[index]
    raise ExportError(
        f"node '{node.name}' calls {target}, which cannot be exported; allowed are operators of "
        f"{', '.join(NAMESPACES)} and arithmetic on sizes. Write this part of the model with "
        "operators of PyTorch."
    )


def _why_refused(target: OpOverload) -> str | None:
    if target.namespace not in NAMESPACES:
        return f"it is not of the namespaces {', '.join(NAMESPACES)}"
    if target._schema.is_mutable:
        return "it writes to its arguments"
    texts = [a.name for a in target._schema.arguments if "str" in str(a.type)]
    unknown = [name for name in texts if name not in TEXTS]
    if unknown:
        return f"its argument {unknown[0]} is a text, which may be any"
    return None


def _argument_data(value: Any, node: Node) -> Any:
    if isinstance(value, Node):
        return {"node": value.name}
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, (list, tuple)):
        return [_argument_data(item, node) for item in value]
    if isinstance(value, torch.device):
        return {"device": str(value)}
    for kind, table in CONSTANTS.items():
        for name, constant in table.items():
            if value is constant:
                return {kind: name}
    raise ExportError(
        f"node '{node.name}' ({node.target}) has an argument that cannot be exported: {value!r}"
    )


def _read_node(
    graph: Graph, data: Any, made: Mapping[str, Node], constants: Mapping[str, Tensor]
) -> Node:
    if not isinstance(data, dict):
        raise ExportError(f"a node in an exported file is an object, not {str(data)[:80]}")
    name, op = data.get("name"), data.get("op")
    if not is_plain(name) or name in made:
        raise ExportError(f"{name!r} is not a name of a new node in an exported file")
    if op == "placeholder":
        node = graph.create_node("placeholder", str(name), (), {}, str(name))
    elif op == "get_attr" and is_plain(data.get("target")) and data["target"] in constants:
        node = graph.create_node("get_attr", str(data["target"]), (), {}, str(name))
    elif op == "call_function":
        node = _read_call(graph, data, made)
    else:
        raise ExportError(f"node '{name}' of an exported file is of the unknown kind {op!r}")
    if node.name != name:
        raise ExportError(f"'{name}' cannot be the name of a node in an exported file")
    if data.get("late") is True:
        set_late(node)
    if "tile" in data:
        whole, start = _list(data["tile"])
        set_tile(node, str(whole), int(start))
    return node


def _read_call(graph: Graph, data: Mapping[str, Any], made: Mapping[str, Node]) -> Node:
    target = find_target(data.get("target"))
    args = tuple(_read_argument(item, made) for item in _list(data.get("args")))
    named = data.get("kwargs", {})
    if not isinstance(named, dict) or not all(map(is_plain, named)):
        raise ExportError(f"node '{data['name']}' has arguments with names that are none")
    kwargs = {key: _read_argument(item, made) for key, item in named.items()}
    return graph.create_node("call_function", target, args, kwargs, data["name"])


def find_target(name: Any) -> Callable[..., Any]:
    """The operator or function of a name in a file.

    Raises:
        ExportError: there is none, or it may not be called.
    """
    if isinstance(name, str) and name in FUNCTIONS:
        return FUNCTIONS[name]
    parts = name.split(".") if isinstance(name, str) else []
    if len(parts) == 3 and parts[0] in NAMESPACES and all(_PLAIN.fullmatch(p) for p in parts):
        packet = getattr(getattr(torch.ops, parts[0]), parts[1], None)
        target = getattr(packet, parts[2], None)
        if isinstance(target, OpOverload):
            reason = _why_refused(target)
            if reason is None:
                return target
            raise ExportError(f"the exported file calls {name}, which is refused: {reason}")
    raise ExportError(
        f"the exported file calls {str(name)[:80]!r}, which is refused: it may call only operators "
        f"of {', '.join(NAMESPACES)} and {', '.join(FUNCTIONS)}"
    )


def _read_argument(data: Any, made: Mapping[str, Node]) -> Any:
    if data is None or type(data) in (bool, int, float, str):
        return data
    if isinstance(data, list):
        return [_read_argument(item, made) for item in data]
    if isinstance(data, dict) and len(data) == 1:
        ((kind, name),) = data.items()
        if isinstance(name, str):
            if kind == "node" and name in made:
                return made[name]
            if kind in CONSTANTS and name in CONSTANTS[kind]:
                return CONSTANTS[kind][name]
            if kind == "device" and _DEVICE.fullmatch(name):
                return torch.device(name)
    raise ExportError(f"{str(data)[:80]} is not an argument of a node in an exported file")


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ExportError(f"expected a list in an exported file, not {str(value)[:80]}")
    return value
