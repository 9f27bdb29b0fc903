"""What the steps of random networks do: for each kind, its arguments and the module it builds.

All take and give ``[T, N, *]``. A kind that does not fit the shape at hand builds None, and its
step is left out.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.fuzz.neurons import KINDS, RESETS, SURROGATES, Called, build_neuron

Shape = tuple[int, ...]
FOLDS = ("fold", "reshape", "loop", "batch_major")
CONVS = {3: nn.Linear, 4: nn.Conv1d, 5: nn.Conv2d}
BATCH_NORMS = {3: nn.BatchNorm1d, 4: nn.BatchNorm1d, 5: nn.BatchNorm2d}
BOTH = (False, True)


@dataclass(frozen=True)
class Operation:
    """A kind of step.

    Attributes:
        build: from the shape of the input and the arguments to a module, or None.
        arguments: the options of each argument.
        needs: "" if it has one input; "same" for a second one of the same shape; "weights" where
            a module of the network is used again.
    """

    build: Callable[..., nn.Module | None]
    arguments: tuple[tuple[Any, ...], ...]
    needs: str = ""


class Folded(nn.Module):
    """A layer for ``[B, *]``, applied to ``[T, N, *]`` in one of the ways that people do it."""

    def __init__(self, layer: nn.Module, fold: str) -> None:
        super().__init__()
        self.layer, self.fold = layer, fold
        weight = next(layer.parameters(), None)
        self.dtype = None if weight is None else weight.dtype

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.dtype is None else x.to(self.dtype)
        steps, batch = x.shape[:2]
        if self.fold == "loop":
            return torch.stack([self.layer(step) for step in x])
        if self.fold == "batch_major":
            y = self.layer(x.transpose(0, 1).reshape(-1, *x.shape[2:]))
            return y.view(batch, steps, *y.shape[1:]).transpose(0, 1)
        if self.fold == "reshape":
            y = self.layer(x.reshape(-1, *x.shape[2:]))
            return y.reshape(steps, batch, *y.shape[1:]).contiguous()
        return self.layer(x.flatten(0, 1)).unflatten(0, (steps, batch))


class Joined(nn.Module):
    """A function of two tensors."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        return self.function(x, other)


class Counted(nn.Module):
    """Buffers that are written in forward: a counter, and a running mean of the input."""

    def __init__(self, channels: int, used: bool) -> None:
        super().__init__()
        self.used = used
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        with torch.no_grad():
            dims = [d for d in range(x.dim()) if d != 2]
            self.mean.lerp_(x.detach().to(self.mean.dtype).mean(dims), 0.25)
        return x - self.mean.view(-1, *[1] * (x.dim() - 3)) if self.used else x * 1.0


class Attention(nn.Module):
    """Attention of spikes over positions, ``[T, N, C, *]``, without a softmax unless asked for."""

    def __init__(self, channels: int, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.query = nn.Linear(channels, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(3).transpose(2, 3) if x.dim() > 3 else x.transpose(0, 1).unsqueeze(0)
        weight = self.query.weight
        query = (self.query(tokens.to(weight.dtype)) > 0).to(x.dtype)
        value = self._mixed(query, tokens)
        if x.dim() > 3:
            return value.transpose(2, 3).reshape(x.shape)
        return value.squeeze(0).transpose(0, 1)

    def _mixed(self, query: Tensor, tokens: Tensor) -> Tensor:
        if self.kind == "linear":
            return query @ (tokens.transpose(-2, -1) @ tokens) * 0.125
        if self.kind == "einsum":
            scores = torch.einsum("tnic,tnjc->tnij", query, tokens)
            return torch.einsum("tnij,tnjc->tnic", scores, tokens) * 0.25
        if self.kind == "bmm":
            flat = tokens.flatten(0, 1)
            scores = torch.bmm(query.flatten(0, 1), flat.transpose(1, 2))
            return torch.bmm(scores * 0.25, flat).unflatten(0, tokens.shape[:2])
        if self.kind == "sdpa":
            return F.scaled_dot_product_attention(query, tokens, tokens)
        scores = query @ tokens.transpose(-2, -1)
        return F.softmax(scores * 0.5, -1) @ tokens


def _conv(
    shape: Shape, out: int, kernel: int, stride: int, groups: str, bias: bool, fold: str
) -> nn.Module | None:
    channels = shape[2]
    if len(shape) == 3:
        layer: nn.Module = nn.Linear(channels, out, bias)
    else:
        count = {"all": channels, "two": 2 if channels % 2 == 0 else 1}.get(groups, 1)
        out = out - out % count or count
        kind = CONVS[len(shape)]
        layer = kind(channels, out, kernel, stride, kernel // 2, groups=count, bias=bias)
    with torch.no_grad():
        layer.weight.mul_(3.0)
    return Folded(layer, fold)


def _linear(shape: Shape, out: int, bias: bool, fold: str, flat: bool) -> nn.Module | None:
    if len(shape) > 3 and not flat:
        return Called(lambda x: x.flatten(3).mean(3))
    features = 1
    for size in shape[2:]:
        features *= size
    layer = nn.Linear(features, out, bias)
    with torch.no_grad():
        layer.weight.mul_(4.0)
    return Folded(nn.Sequential(nn.Flatten(1), layer), fold)


def _norm(shape: Shape, kind: str, fold: str) -> nn.Module | None:
    channels = shape[2]
    if kind == "layer":
        return Folded(nn.LayerNorm(shape[2:]), fold)
    if kind == "group":
        # Its backward crashes in channels-last where the input needs no gradient (torch 2.13).
        norm = nn.GroupNorm(2 if channels % 2 == 0 else 1, channels)
        return Folded(nn.Sequential(Called(torch.Tensor.contiguous), norm), fold)
    options: dict[str, dict[str, Any]] = {
        "average": {"momentum": None},
        "untracked": {"track_running_stats": False},
        "plain": {"affine": False},
    }
    norm = BATCH_NORMS[len(shape)](channels, **options.get(kind, {}))
    if kind == "frozen":
        norm = Frozen(norm)
    return Folded(norm, fold)


class Frozen(nn.Module):
    """A norm that stays in evaluation mode."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def train(self, mode: bool = True) -> Frozen:
        super().train(mode)
        self.norm.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


def _pool(shape: Shape, kind: str, fold: str) -> nn.Module | None:
    if len(shape) == 3 or min(shape[3:]) < 2:
        return None
    rank = len(shape) - 3
    pools: dict[str, Callable[[], nn.Module]] = {
        "max": lambda: (nn.MaxPool1d, nn.MaxPool2d)[rank - 1](2),
        "max_overlap": lambda: (nn.MaxPool1d, nn.MaxPool2d)[rank - 1](3, 2, 1),
        "max_ceil": lambda: (nn.MaxPool1d, nn.MaxPool2d)[rank - 1](2, ceil_mode=True),
        "avg": lambda: (nn.AvgPool1d, nn.AvgPool2d)[rank - 1](2),
        "avg_pad": lambda: (nn.AvgPool1d, nn.AvgPool2d)[rank - 1](3, 2, 1),
        "avg_nopad": lambda: (nn.AvgPool1d, nn.AvgPool2d)[rank - 1](
            3, 2, 1, count_include_pad=False
        ),
        "adaptive": lambda: (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d)[rank - 1](2),
        "adaptive_one": lambda: (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d)[rank - 1](1),
        "adaptive_max": lambda: (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d)[rank - 1](2),
    }
    return Folded(pools[kind](), fold)


POOLS = ("max", "avg", "max_overlap", "max_ceil", "avg_pad", "avg_nopad", "adaptive",
         "adaptive_one", "adaptive_max")  # fmt: skip

COMBINE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "iand": lambda x, y: x * (1 - y),
    "cat": lambda x, y: torch.cat([x, y], 2),
    "cat_batch": lambda x, y: torch.cat([x, y], 1)[:, : x.shape[1]],
    "cat_time": lambda x, y: torch.cat([x[:1], y[1:]], 0),
    "max": torch.maximum,
    "where": lambda x, y: torch.where(x > 0, x, y),
    "lerp": lambda x, y: torch.lerp(x, y.to(x.dtype), 0.25),
    "mean": lambda x, y: torch.stack([x, y]).mean(0),
    "sum": lambda x, y: torch.stack([x, y, x]).sum(0),
    "or": lambda x, y: ((x > 0) | (y > 0)).to(x.dtype) + x,
    "gate": lambda x, y: x * y[:, :, :1],
    "detached": lambda x, y: x + y.detach() * 0.5,
}


def _added(x: Tensor, y: Tensor) -> Tensor:
    return x.clone().add_(y)


def _sliced(x: Tensor, y: Tensor) -> Tensor:
    x = x.clone()
    x[:, :, :1] = y[:, :, :1].to(x.dtype)
    return x


def _stepped(x: Tensor, y: Tensor) -> Tensor:
    x = x * 1.0
    x[-1].mul_(0.5)
    x[0] += y[-1].to(x.dtype)
    return x


def _copied(x: Tensor, y: Tensor) -> Tensor:
    result = torch.zeros_like(x)
    for t in range(x.shape[0]):
        result[t].copy_(x[t] + y[x.shape[0] - 1 - t])
    return result


INPLACE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": _added,
    "self_add": lambda x, y: x.add_(y.to(x.dtype)),
    "mul": lambda x, y: x.clone().mul_(0.5).sub_(y),
    "self_mul": lambda x, _: x.mul_(0.5),
    "slice": _sliced,
    "steps": _stepped,
    "copy": _copied,
    "fill": lambda x, y: x.clone().masked_fill_(y > 0, 0.25),
    "zero": lambda x, _: (x * 1.0)[:, :, :1].zero_() + x,
    "view": lambda x, y: x.clone().flatten(1).mul_(2).view(x.shape) + y,
    "index": lambda x, y: x.clone().index_add_(0, torch.tensor([0]), y[-1:].to(x.dtype)),
}

SHAPES: dict[str, Callable[[Tensor], Tensor]] = {
    "transpose": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "flip": lambda x: x.flip(0),
    "roll": lambda x: x.roll(1, 2),
    "shift": lambda x: torch.cat([torch.zeros_like(x[:1]), x[:-1]]),
    "chunk": lambda x: torch.cat(list(reversed(x.chunk(2, 2))), 2),
    "unbind": lambda x: torch.stack(list(reversed(x.unbind(0)))),
    "slice": lambda x: x[:, :, ::2],
    "repeat": lambda x: x.repeat_interleave(2, 2),
    "expand": lambda x: x[:, :, :1].expand_as(x),
    "last": lambda x: x[-1:].expand_as(x) + x,
    "pad": lambda x: F.pad(x, (1, 1)) if x.dim() > 3 else F.pad(x, (1, 0)),
    "upsample": lambda x: (
        F.interpolate(x.flatten(0, 1), scale_factor=2, mode="nearest").unflatten(0, x.shape[:2])
        if x.dim() > 3
        else x
    ),
    "shuffle": lambda x: x[:, :, torch.arange(x.shape[2] - 1, -1, -1)],
    "squeeze": lambda x: x.unsqueeze(-1).squeeze(-1).swapaxes(0, 1).swapaxes(0, 1),
    "channels_last": lambda x: (
        x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, x.shape[:2])
        if x.dim() == 5
        else x.contiguous()
    ),
}

POINTWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "scale": lambda x: x * 0.7,
    "third": lambda x: x / 3,
    "shift": lambda x: x - 0.25,
    "double": lambda x: 2 * x - 1,
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "abs": torch.abs,
    "square": lambda x: x**2,
    "clamp": lambda x: x.clamp(-1, 1),
    "round": lambda x: x + (x.round() - x).detach(),
    "negate": lambda x: -x,
    "compare": lambda x: (x >= 0.5).to(x.dtype) * x,
    "logical": lambda x: torch.logical_not(x.bool()).to(x.dtype) + x,
    "cumsum": lambda x: x.cumsum(0),
    "centered": lambda x: x - x.mean(0, keepdim=True),
    "normalized": lambda x: x / (1 + x.abs().amax(2, keepdim=True)),
    "softmax": lambda x: x.softmax(2),
    "zeros": lambda x: x + torch.zeros_like(x),
    "clone": torch.clone,
    "detach": lambda x: x.detach() * 0.5 + x,
    "sort": lambda x: x.sort(2).values,
    "any": lambda x: x * (x > 0).any(2, keepdim=True),
}

DROPOUTS: dict[str, Callable[[float], nn.Module]] = {
    "element": nn.Dropout,
    "channel": nn.Dropout1d,
    "alpha": nn.AlphaDropout,
    "inplace": lambda p: nn.Sequential(Called(torch.clone), nn.Dropout(p, inplace=True)),
}


def _dropout(shape: Shape, kind: str, p: float, fold: str) -> nn.Module | None:
    if kind == "channel" and len(shape) != 4:
        return Folded(nn.Dropout(p), "loop")
    return Folded(DROPOUTS[kind](p), fold)


def _cast(shape: Shape, dtype: str, back: bool) -> nn.Module:
    del shape
    target = getattr(torch, dtype)
    return Called((lambda x: x.to(target).to(x.dtype)) if back else (lambda x: x.to(target)))


def _readout(shape: Shape, kind: str) -> nn.Module | None:
    del shape
    kinds: dict[str, Callable[[Tensor], Tensor]] = {
        "mean": lambda x: x.mean(0, keepdim=True).expand_as(x),
        "sum": lambda x: x.sum(0, keepdim=True),
        "last": lambda x: x[-1:],
        "max": lambda x: x.amax(0, keepdim=True),
    }
    return Called(kinds[kind])


OPERATIONS: dict[str, Operation] = {
    "conv": Operation(_conv, ((4, 2, 6), (3, 1, 5), (1, 1, 2), ("one", "all", "two"), BOTH, FOLDS)),
    "linear": Operation(_linear, ((5, 8, 3), BOTH, FOLDS, (True, False))),
    "norm": Operation(
        _norm,
        (("batch", "batch", "average", "untracked", "plain", "frozen", "layer", "group"), FOLDS),
    ),
    "neuron": Operation(build_neuron, (KINDS, RESETS, tuple(SURROGATES), BOTH, BOTH)),
    "pool": Operation(_pool, (POOLS, FOLDS)),
    "combine": Operation(lambda _, k: Joined(COMBINE[k]), (tuple(COMBINE),), "same"),
    "attention": Operation(
        lambda shape, k: Attention(shape[2], k),
        (("linear", "einsum", "bmm", "sdpa", "softmax"),),
    ),
    "dropout": Operation(_dropout, (tuple(DROPOUTS), (0.5, 0.2, 0.0, 1.0), FOLDS)),
    "inplace": Operation(lambda _, k: Joined(INPLACE[k]), (tuple(INPLACE),), "same"),
    "shape": Operation(lambda _, k: Called(SHAPES[k]), (tuple(SHAPES),)),
    "pointwise": Operation(lambda _, k: Called(POINTWISE[k]), (tuple(POINTWISE),)),
    "cast": Operation(_cast, (("float32", "bfloat16", "float16", "float64"), BOTH)),
    "buffer": Operation(lambda shape, used: Counted(shape[2], used), (BOTH,)),
    "again": Operation(lambda _: None, (), "weights"),
    "readout": Operation(_readout, (("mean", "sum", "last", "max"),)),
}
ARGUMENTS = {name: operation.arguments for name, operation in OPERATIONS.items()}

for _name, _operation in OPERATIONS.items():
    _taken = inspect.signature(_operation.build).parameters
    assert _name == "again" or len(_taken) == 1 + len(_operation.arguments), _name
