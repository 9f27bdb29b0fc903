"""From an optimizer to the pieces of work of its next step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from snnfx.op_counter.neuromc.piece import Bits, Loops, Piece

_KINDS = ((torch.optim.SGD, "sgd"), (torch.optim.AdamW, "adamw"), (torch.optim.Adam, "adam"))
"""Optimizers of the model; the first that fits: AdamW is an Adam."""

_UNMODELLED = {"sgd": ("nesterov", "dampening", "maximize"), "adam": ("amsgrad", "maximize")}
"""Options that change the work, and that the model does not know."""


def kind_of(optimizer: torch.optim.Optimizer) -> str | None:
    """``"sgd"``, ``"adam"`` or ``"adamw"``; None for any other optimizer."""
    return next((name for kind, name in _KINDS if isinstance(optimizer, kind)), None)


def outside_of_model(optimizer: torch.optim.Optimizer) -> list[str]:
    """What of an optimizer the model does not know: its class, or options that are on."""
    kind = kind_of(optimizer)
    if kind is None:
        return [f"optimizer {type(optimizer).__name__} (modelled: SGD, Adam, AdamW)"]
    options = _UNMODELLED["sgd" if kind == "sgd" else "adam"]
    on = {o: g[o] for g in optimizer.param_groups for o in options if float(g.get(o, 0) or 0) != 0}
    name = type(optimizer).__name__
    return [f"{name}({option}={value}), counted without it" for option, value in on.items()]


def pieces_of_step(optimizer: torch.optim.Optimizer, stage: str) -> list[Piece]:
    """The work of a step over all parameters that have a gradient.

    Adam is one piece. SGD is one for each set of options, and for parameters of up to one dimension
    and of more.
    """
    kind = kind_of(optimizer)
    if kind is None:
        return []
    buckets: dict[tuple[bool, bool, bool, bool], int] = {}
    small = large = 0
    for group, parameter in _updated(optimizer):
        numel, is_small = parameter.numel(), parameter.dim() <= 1
        small, large = small + numel * is_small, large + numel * (not is_small)
        key = (*_sgd_options(optimizer, group, parameter), is_small)
        buckets[key] = buckets.get(key, 0) + numel
    if kind != "sgd":
        return [_piece(stage, kind, small, large)]
    return [
        _piece(stage, kind, *((numel, 0) if is_small else (0, numel)), *options)
        for (*options, is_small), numel in buckets.items()
        if numel
    ]


def _updated(optimizer: torch.optim.Optimizer) -> Iterator[tuple[dict[str, Any], Tensor]]:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                yield group, parameter


def _sgd_options(
    optimizer: torch.optim.Optimizer, group: dict[str, Any], parameter: Tensor
) -> tuple[bool, bool, bool]:
    """Whether there is momentum, weight decay, and a buffer of the momentum."""
    momentum = float(group.get("momentum") or 0) > 0
    # `state` makes an entry for whom it is asked with [].
    has_buffer = optimizer.state.get(parameter, {}).get("momentum_buffer") is not None
    decay = float(group.get("weight_decay") or 0) > 0
    return momentum, decay, momentum and has_buffer


def _piece(
    stage: str,
    kind: str,
    small: int,
    large: int,
    momentum: bool = False,
    weight_decay: bool = False,
    has_buffer: bool = False,
) -> Piece:
    return Piece(
        stage=stage,
        phase="optimizer",
        op_name=kind,
        core_type="bp_grad_opt",
        process_key="with_opt",
        loops=Loops(channels_out=small, kernel_columns=large),
        bits=Bits(32, 32, 32),
        weight_numel=large,
        output_numel=small + large,
        source="optimizer",
        has_momentum=momentum,
        has_weight_decay=weight_decay,
        has_momentum_buffer=has_buffer,
    )
