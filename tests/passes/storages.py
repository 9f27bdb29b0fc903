"""An independent account of memory: run a graph on real tensors and look at their storages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree


def storages_of(values: Any) -> dict[int, int]:
    """The bytes of the storages behind all tensors in `values`, by address."""
    tensors = [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor)]
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}


def run_and_measure(
    module: GraphModule, args: Sequence[Any], *, released: Sequence[int] = ()
) -> tuple[Any, dict[str, int], int]:
    """Run a graph op by op, dropping each value after its last use, as generated code does.

    Args:
        module: with placeholders for `args`.
        args: real values.
        released: positions of the arguments that the graph owns; all others are the caller's.

    Returns:
        The results, the bytes alive while each node runs, and the bytes alive at the end.
    """
    graph = module.graph
    last = {source: node for node in graph.nodes for source in node.all_input_nodes}
    placeholders = graph.find_nodes(op="placeholder")
    env: dict[Node, Any] = dict(zip(placeholders, args, strict=True))
    theirs = storages_of([arg for i, arg in enumerate(args) if i not in released])
    alive: dict[str, int] = {}
    with torch.no_grad():
        for node in graph.nodes:
            if node.op in ("placeholder", "output"):
                continue
            inputs = torch.fx.node.map_arg((node.args, node.kwargs), lambda n: env[n])
            if node.op == "get_attr":
                env[node] = getattr(module, str(node.target))
            else:
                env[node] = node.target(*inputs[0], **inputs[1])
            alive[node.name] = _bytes(env.values(), theirs)
            del inputs
            for done in [n for n in env if last.get(n, n) is node]:
                del env[done]
    output = graph.output_node()
    results = torch.fx.node.map_arg(output.args[0], lambda n: env[n])
    kept = [env[n] for n in output.all_input_nodes]
    return results, alive, _bytes(kept, theirs)


def _bytes(values: Any, theirs: dict[int, int]) -> int:
    found = storages_of(list(values))
    return sum(size for address, size in found.items() if address not in theirs)
