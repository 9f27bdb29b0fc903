"""FLOPs of what adds at places that are given by values.

Where terms meet depends on values; for a table that begins with zeros the fewest additions are
counted, as if they were spread as evenly as possible.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from snnfx.op_counter.flop_table import FLOPS
from snnfx.op_counter.op_names import packets, variants
from snnfx.op_counter.operands import Args, Kwargs, argument, places, sum_of_terms


@FLOPS.rule(*packets([*variants(["index_put", "_index_put_impl"]), "_unsafe_index_put"]))
def index_put_flops(args: Args, kwargs: Kwargs, out: Tensor) -> int:
    """Accumulating, one addition for each of the values."""
    return args[2].numel() if argument(args, kwargs, 3, "accumulate", False) else 0


@FLOPS.rule(*packets(variants(["scatter_add", "scatter_reduce", "index_reduce"])))
def scatter_flops(args: Args, kwargs: Kwargs, out: Tensor) -> int:
    """``(x, dim, index, src)``: one for each element that is written."""
    return places(args)


@FLOPS.rule(*packets(variants(["index_add"])))
def index_add_flops(args: Args, kwargs: Kwargs, out: Tensor) -> int:
    """``x + alpha * source``, at some places."""
    return places(args) * (1 if kwargs.get("alpha", 1) == 1 else 2)


@FLOPS.rule(
    *packets(variants(["scatter", "index_copy", "index_fill"])), *packets(["masked_scatter_"])
)
def placed_flops(args: Args, kwargs: Kwargs, out: Tensor) -> int:
    """Elements are moved; with a ``reduce``, added or multiplied."""
    return args[2].numel() if kwargs.get("reduce") is not None else 0


@FLOPS.rule(*packets(["embedding_dense_backward"]))
def embedding_backward_flops(args: Args, kwargs: Kwargs, out: Tensor) -> int:
    """Rows of gradients are added up in a table; see the module for how many."""
    return sum_of_terms(args[0].numel(), out.numel())


@FLOPS.rule(*packets(["_embedding_bag", "_embedding_bag_forward_only"]))
def embedding_bag_flops(args: Args, kwargs: Kwargs, out: Any) -> int:
    """The sum (mode 0), mean (1) or maximum (2) of the rows of each bag, weighted or not."""
    terms, results = args[1].numel() * args[0].shape[-1], out[0].numel()
    weighted = argument(args, kwargs, 6, "per_sample_weights") is not None
    mean = argument(args, kwargs, 4, "mode", 0) == 1
    return sum_of_terms(terms, results) + (results if mean else 0) + (terms if weighted else 0)


@FLOPS.rule(*packets(["_embedding_bag_backward"]))
def embedding_bag_backward_flops(args: Args, kwargs: Kwargs, out: Tensor) -> int:
    """See `_bag_backward`."""
    return _bag_backward(
        args, out, mode=args[8], weights=argument(args, kwargs, 10, "per_sample_weights")
    )


@FLOPS.rule(*packets(["_embedding_bag_dense_backward"]))
def embedding_bag_dense_backward_flops(args: Args, kwargs: Kwargs, out: Tensor) -> int:
    """See `_bag_backward`."""
    return _bag_backward(
        args, out, mode=args[7], weights=argument(args, kwargs, 8, "per_sample_weights")
    )


def _bag_backward(args: Args, out: Tensor, mode: int, weights: Tensor | None) -> int:
    """Each row of a bag gets its gradient, divided (a mean) or weighted."""
    terms = args[1].numel() * args[0].shape[-1]
    scaled = args[0].numel() if mode == 1 else 0
    return sum_of_terms(terms, out.numel()) + scaled + (terms if weights is not None else 0)
