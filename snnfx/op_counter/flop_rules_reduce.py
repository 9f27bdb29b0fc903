"""FLOPs of reductions, softmax, norms, scans and sorting.

n is the number of elements, m that of results or rows: to sum n elements up to m takes n - m
additions, and a maximum as many comparisons.
"""

from __future__ import annotations

from math import inf
from typing import Any

from torch import Tensor

from snnfx.eager.storages import tensors_in
from snnfx.op_counter.flop_table import FLOPS
from snnfx.op_counter.op_names import names, packets
from snnfx.op_counter.operands import (
    Args,
    Kwargs,
    argument,
    elements,
    main_result,
    sum_of_terms,
)


@FLOPS.rule(
    *packets(names("sum nansum prod amax amin max min argmax argmin any all count_nonzero"))
)
def sum_flops(args: Args, kwargs: Kwargs, out: Any) -> int:
    """``n - m``; none for results of no elements (a correction), which are 0."""
    return sum_of_terms(args[0].numel(), main_result(args, out).numel())


@FLOPS.rule(*packets(["aminmax", "_aminmax"]))
def aminmax_flops(args: Args, kwargs: Kwargs, out: Any) -> int:
    """Both extremes."""
    return 2 * sum_of_terms(args[0].numel(), out[0].numel())


@FLOPS.rule(*packets(["mean", "nanmean"]))
def mean_flops(args: Args, kwargs: Kwargs, out: Tensor) -> int:
    """``n - m`` additions, m divisions."""
    return args[0].numel()


@FLOPS.rule(*packets(["var", "var_mean"]))
def variance_flops(args: Args, kwargs: Kwargs, out: Any) -> int:
    """Mean n, and the mean of squares less the square of the mean ``2 n + 2 m``."""
    return 3 * args[0].numel() + 2 * main_result(args, out).numel()


@FLOPS.rule(*packets(["std", "std_mean"]))
def deviation_flops(args: Args, kwargs: Kwargs, out: Any) -> int:
    """A variance and its root."""
    return 3 * args[0].numel() + 3 * main_result(args, out).numel()


@FLOPS.rule(*packets(["linalg_vector_norm", "norm"]))
def norm_flops(args: Args, kwargs: Kwargs, out: Tensor) -> int:
    """See `_norm`."""
    order = argument(args, kwargs, 1, "ord", kwargs.get("p", 2))
    return _norm(args[0].numel(), out.numel(), order)


@FLOPS.rule(*packets(["_foreach_norm"]))
def foreach_norm_flops(args: Args, kwargs: Kwargs, out: Any) -> int:
    """A norm of each tensor."""
    order = argument(args, kwargs, 1, "ord", 2)
    return sum(_norm(x.numel(), 1, order) for x in tensors_in(args[0]))


@FLOPS.rule(*packets(["_foreach_max"]))
def foreach_max_flops(args: Args, kwargs: Kwargs, out: Any) -> int:
    """A maximum of each tensor."""
    return sum(sum_of_terms(x.numel(), 1) for x in tensors_in(args[0]))


def _norm(n: int, m: int, order: float | None) -> int:
    """Powers or magnitudes n, their sum or maximum ``n - m``, and the m roots of powers."""
    roots = 0 if order in (0, 1, inf, -inf) else m
    return n + sum_of_terms(n, m) + roots


@FLOPS.rule(*packets(["_weight_norm_interface"]))
def weight_norm_flops(args: Args, kwargs: Kwargs, out: Any) -> int:
    """``v * (g / norm of v)`` for each row: the norms 2 n, m divisions, n products."""
    return 3 * args[0].numel() + args[1].numel()


@FLOPS.rule(*packets(["_weight_norm_interface_backward"]))
def weight_norm_backward_flops(args: Args, kwargs: Kwargs, out: Any) -> int:
    """The gradients of v and g.

    ``grad_g = s / norm`` with the row sums ``s`` of ``grad_w v``, 2 n; ``grad_v = g / norm
    (grad_w - v s / norm^2)`` 3 n and, of each row, the factors ``g / norm`` and ``grad_g / norm``.
    """
    return 5 * args[1].numel() + 2 * args[2].numel()


@FLOPS.rule(*packets(["_softmax", "_safe_softmax", "softmax.int"]))
def softmax_flops(args: Args, kwargs: Kwargs, out: Tensor) -> int:
    """Maximum ``n - m``, difference n, exponential n, sum ``n - m``, division n."""
    n = out.numel()
    return 3 * n + 2 * sum_of_terms(n, _rows(args, kwargs))


@FLOPS.rule(*packets(["_log_softmax"]))
def log_softmax_flops(args: Args, kwargs: Kwargs, out: Tensor) -> int:
    """As `softmax_flops`, with a logarithm a row and a difference for the division."""
    n, rows = out.numel(), _rows(args, kwargs)
    return 3 * n + 2 * sum_of_terms(n, rows) + rows


@FLOPS.rule(*packets(["_softmax_backward_data", "_log_softmax_backward_data"]))
def softmax_backward_flops(args: Args, kwargs: Kwargs, out: Tensor) -> int:
    """``y (g - sum(g y))``, or ``g - exp(y) sum g``: 3 n and the sums ``n - m``."""
    n, dim = out.numel(), args[2]
    return 3 * n + sum_of_terms(n, _rows_of(out, dim))


@FLOPS.rule(*packets(["logsumexp"]))
def logsumexp_flops(args: Args, kwargs: Kwargs, out: Tensor) -> int:
    """Maximum ``n - m``, difference n, exponential n, sum ``n - m``, logarithm and addition 2 m."""
    n, m = args[0].numel(), out.numel()
    return 2 * n + 2 * sum_of_terms(n, m) + 2 * m


@FLOPS.rule(*packets(names("cumsum cumsum_ cumprod cumprod_ cummax cummin")))
def scan_flops(args: Args, kwargs: Kwargs, out: Any) -> int:
    """Each element but the first of a row takes one."""
    return sum_of_terms(args[0].numel(), _rows(args, kwargs))


@FLOPS.rule(*packets(["_cummax_helper", "_cummin_helper"]))
def scan_into_flops(args: Args, kwargs: Kwargs, out: Any) -> int:
    """``(x, values, indices, dim)``, see `scan_flops`."""
    return sum_of_terms(args[0].numel(), _rows_of(args[0], args[3]))


@FLOPS.rule(*packets(["logcumsumexp", "_logcumsumexp"]))
def log_scan_flops(args: Args, kwargs: Kwargs, out: Tensor) -> int:
    """Each element but the first of a row takes ``max + log1p(exp(-|a - b|))``, which is 7."""
    return 7 * sum_of_terms(args[0].numel(), _rows_of(args[0], args[1]))


@FLOPS.rule(*packets(["sort", "argsort", "msort"]))
def sort_flops(args: Args, kwargs: Kwargs, out: Any) -> int:
    """``ceil(log2 L)`` comparisons for each element of rows of L: those of a merge sort."""
    x: Tensor = args[0]
    dims = [value for value in args[1:] if type(value) is int]
    length = x.shape[dims[0] if dims else kwargs.get("dim", -1)] if x.dim() else 1
    return x.numel() * max(length - 1, 0).bit_length()


@FLOPS.rule(*packets(["topk", "median", "nanmedian", "kthvalue", "mode"]))
def selection_flops(args: Args, kwargs: Kwargs, out: Any) -> int:
    """Not less than one comparison for each element that is not selected."""
    return sum_of_terms(args[0].numel(), main_result(args, out).numel())


@FLOPS.rule(*packets(["_cdist_forward"]))
def distance_flops(args: Args, kwargs: Kwargs, out: Tensor) -> int:
    """``x1 [.., P, M]``, ``x2 [.., R, M]``: differences, and a norm of M for each pair."""
    terms = out.numel() * args[0].shape[-1]
    return terms + _norm(terms, out.numel(), args[2])


@FLOPS.rule(*packets(["_cdist_backward"]))
def distance_backward_flops(args: Args, kwargs: Kwargs, out: Tensor) -> int:
    """``grad (x1 - x2) / distance`` for each pair and component 3, and their sum over pairs."""
    terms = args[0].numel() * args[1].shape[-1]
    return 3 * terms + sum_of_terms(terms, out.numel())


def _rows(args: Args, kwargs: Kwargs) -> int:
    return _rows_of(args[0], argument(args, kwargs, 1, "dim"))


def _rows_of(x: Tensor, dim: int) -> int:
    """How many rows along a dimension there are; of a row of nothing, none."""
    length = x.shape[dim] if x.dim() else 1
    return elements(x) // length if length else 0
