"""No operator of usual layers, losses and optimizers is unknown to the counters of spikes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snnfx.op_counter import ACCounter, DispatchCounterMode, MACCounter, SynOpCounter

IMAGE = (2, 4, 6, 8)
LAYERS: list[nn.Module] = [
    *(conv(4, 4, 3, groups=2) for conv in (nn.Conv2d, nn.ConvTranspose2d)),
    *(pool(2) for pool in (nn.AvgPool2d, nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)),
    *(norm(4) for norm in (nn.BatchNorm2d, nn.InstanceNorm2d)),
    *(nn.GroupNorm(2, 4), nn.LayerNorm(8), nn.RMSNorm(8), nn.LocalResponseNorm(2)),
    *(nn.BatchNorm2d(4).eval(), nn.BatchNorm2d(4, affine=False, track_running_stats=False)),
    *(nn.ReLU(), nn.ReLU6(), nn.PReLU(), nn.LeakyReLU(), nn.ELU(), nn.CELU(), nn.SELU()),
    *(nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Mish(), nn.Hardswish(), nn.Hardtanh()),
    *(nn.Sigmoid(), nn.LogSigmoid(), nn.Hardsigmoid(), nn.Tanh(), nn.Softplus(), nn.Softsign()),
    *(nn.Softmax(-1), nn.LogSoftmax(-1), nn.GLU(), nn.Softshrink(), nn.Hardshrink()),
    *(nn.Dropout(), nn.Dropout2d(), nn.Flatten(), nn.PixelShuffle(2), nn.Unfold(2)),
    *(nn.ZeroPad2d(1), nn.ReflectionPad2d(1), nn.ReplicationPad2d(1)),
    *(nn.Upsample(scale_factor=2, mode=mode) for mode in ("nearest", "bilinear")),
]
LOSSES = [
    *(nn.MSELoss(), nn.L1Loss(), nn.SmoothL1Loss(), nn.HuberLoss(), nn.KLDivLoss(reduction="sum")),
    *(nn.BCELoss(), nn.BCEWithLogitsLoss(), nn.PoissonNLLLoss(), nn.CosineEmbeddingLoss()),
]
OPTIMIZERS: list[Callable[..., torch.optim.Optimizer]] = [
    torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad,
]  # fmt: skip


def strictly(run: Callable[[], object]) -> int:
    """Run with all three, none of which may meet an unknown operator."""
    counters = [MACCounter(), ACCounter(), SynOpCounter()]
    with DispatchCounterMode(counters, strict=True):
        run()
    return sum(counter.get_total() for counter in counters)


@pytest.mark.parametrize("layer", LAYERS, ids=repr)
def test_layers(layer: nn.Module) -> None:
    x = torch.rand(IMAGE).requires_grad_()
    strictly(lambda: layer(x).sum().backward())
    assert x.grad is not None


@pytest.mark.parametrize("rank", [1, 3])
def test_layers_of_other_ranks(rank: int) -> None:
    x = torch.rand(2, 4, *[6] * rank, requires_grad=True)
    convs = (nn.Conv1d, nn.ConvTranspose1d) if rank == 1 else (nn.Conv3d, nn.ConvTranspose3d)
    norm = nn.BatchNorm1d(4) if rank == 1 else nn.BatchNorm3d(4)
    pools = (F.avg_pool1d, F.max_pool1d) if rank == 1 else (F.avg_pool3d, F.max_pool3d)
    adaptive = (
        (F.adaptive_avg_pool1d, F.adaptive_max_pool1d)
        if rank == 1
        else (F.adaptive_avg_pool3d, F.adaptive_max_pool3d)
    )
    calls = [*(conv(4, 4, 3, stride=2) for conv in convs), norm]
    calls += [lambda y, f=f: f(y, 2) for f in (*pools, *adaptive)]
    for call in calls:
        assert strictly(lambda call=call: call(x).sum().backward()) >= 0
    assert x.grad is not None


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_losses(loss: nn.Module) -> None:
    x, y = torch.rand(5, 3, requires_grad=True), torch.rand(5, 3)
    extra = (torch.ones(5),) if isinstance(loss, nn.CosineEmbeddingLoss) else ()
    assert strictly(lambda: loss(x, y, *extra).backward()) > 0


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("foreach", [False, True])
def test_optimizers(optimizer: Callable[..., torch.optim.Optimizer], foreach: bool) -> None:
    weight = nn.Parameter(torch.rand(3, 3))
    weight.grad = torch.rand(3, 3) + 1
    stepper = optimizer([weight], foreach=foreach, weight_decay=0.1)

    def steps() -> None:
        nn.utils.clip_grad_norm_([weight], 1.0)
        stepper.step()
        stepper.step()

    assert strictly(steps) > 0


@pytest.mark.parametrize("layer", [nn.RNN, nn.LSTM, nn.GRU, nn.RNNCell, nn.LSTMCell, nn.GRUCell])
def test_recurrent_layers(layer: type[nn.Module]) -> None:
    model = layer(4, 3)
    x = torch.rand(2, 4) if "Cell" in layer.__name__ else torch.rand(5, 2, 4)

    def step() -> None:
        out = model(x)
        (out[0] if isinstance(out, tuple) else out).sum().backward()

    assert strictly(step) > 0


def attention(x: Tensor) -> Tensor:
    layer = nn.MultiheadAttention(4, 2)
    return layer(x, x, x)[0] + layer(x, x, x, need_weights=False)[0]


CALLS: list[Callable[[Tensor], Tensor]] = [
    attention,
    lambda x: nn.TransformerEncoderLayer(4, 2, 8)(x),
    lambda x: F.scaled_dot_product_attention(x[None], x[None], x[None], is_causal=True),
    lambda x: torch.einsum("abc,dc->abd", x, torch.rand(3, 4)),
    lambda x: nn.Bilinear(4, 4, 3)(x, x),
    lambda x: nn.Embedding(5, 3)(x.long()) + nn.EmbeddingBag(5, 3)(x[0].long())[0],
    lambda x: torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))(x),
    lambda x: torch.cdist(x, x) + F.cosine_similarity(x, x, -1)[..., None],
    lambda x: x.cumsum(0) + x.logsumexp(0) + x.std(0) + x.norm() + x.amax(0) + x.sort().values,
]


@pytest.mark.parametrize("call", CALLS)
def test_functions(call: Callable[[Tensor], Tensor]) -> None:
    x = torch.rand(5, 2, 4, requires_grad=True)
    assert strictly(lambda: call(x).sum().backward()) > 0
