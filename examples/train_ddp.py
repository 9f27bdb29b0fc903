"""Train on several processes, plain and with snnmem, and compare: losses, plans, memory a rank.

    torchrun --nproc-per-node 2 examples/train_ddp.py
    torchrun --nproc-per-node 4 examples/train_ddp.py --parallel fsdp --amp --accumulate 2

Every process trains the digits network of `train_digits.py` on images of its own, over gloo, from
the same seed three times: in one piece as it is, and through snnmem, with the same batches. The
planner decides from the graph alone, so that all ranks plan the same without asking each other;
this holds the plans of all ranks to be equal. With the eager lowering, the default here, the losses
have to be equal, too.

How the model is put together:

- ``ddp``: ``DistributedDataParallel(torch.compile(model, backend="snnmem"))``. Compiled inside of
  DDP, the model is one graph, whatever the buckets. Around DDP, Dynamo cuts the graph at the
  buckets, unless ``torch._dynamo.config.optimize_ddp = False``.
- ``fsdp``: ``torch.compile(fully_shard(model), backend="snnmem")``: all parameters are one group.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from measure import measure_memory, time_step
from train_digits import Digits, DigitsNet, batches, load

LEARNING_RATE = 0.05


@dataclass
class Run:
    """What one training run gave on this rank.

    Attributes:
        losses: of each step.
        step_ms: of each step.
        activation_bytes: of one more step.
        plans: one for each graph that was compiled, as JSON.
    """

    losses: list[float] = field(default_factory=list)
    step_ms: list[float] = field(default_factory=list)
    activation_bytes: int = 0
    plans: list[str] = field(default_factory=list)


def assemble(arguments: argparse.Namespace, plans: list[str] | None) -> nn.Module:
    """The model of this rank; compiled where `plans` takes what was planned."""
    torch.manual_seed(arguments.seed)
    model = DigitsNet(arguments.channels)

    def compiled(module: nn.Module) -> Any:
        if plans is None:
            return module
        options = {
            "level": arguments.level,
            "lowering": arguments.lowering,
            "plan_callback": lambda plan: plans.append(plan.to_json()),
        }
        return torch.compile(module, backend="snnmem", options=options)

    if arguments.parallel == "ddp":
        return DistributedDataParallel(compiled(model))
    fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    return compiled(model)


def train(arguments: argparse.Namespace, digits: Digits, *, plain: bool) -> Run:
    """Train from the seed, and measure one more step."""
    torch._dynamo.reset()
    run = Run()
    model = assemble(arguments, None if plain else run.plans)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    rank, ranks = dist.get_rank(), dist.get_world_size()
    size = arguments.batch * ranks * arguments.accumulate
    chosen: list[Tensor] = []
    for epoch in range(arguments.steps):
        chosen += batches(len(digits.train_x), size, epoch, arguments.seed)
        if len(chosen) >= arguments.steps:
            break

    def update(indices: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        own = indices[rank::ranks].split(arguments.batch)
        for place, part in enumerate(own):
            last = place == len(own) - 1
            with nullcontext() if last else waiting(model):
                loss = loss_of(model, digits, part, arguments.amp)
                (loss / len(own)).backward()
        run.losses.append(loss.item())
        optimizer.step()

    for indices in chosen[: arguments.steps]:
        run.step_ms.append(time_step(lambda indices=indices: update(indices)))
    part = chosen[0][rank::ranks][: arguments.batch]
    memory = measure_memory(
        lambda: loss_of(model, digits, part, arguments.amp).backward(), model, ()
    )
    run.activation_bytes = memory.activation_bytes
    return run


def waiting(model: nn.Module) -> Any:
    """Gradients add up on this rank; nothing is sent."""
    if isinstance(model, DistributedDataParallel):
        return model.no_sync()
    return nullcontext()


def loss_of(model: Callable[[Tensor], Tensor], digits: Digits, chosen: Tensor, amp: bool) -> Tensor:
    """The loss of this rank's images."""
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp):
        output = model(digits.train_x[chosen])
    return F.cross_entropy(output.float(), digits.train_y[chosen])


def gathered(value: Any) -> list[Any]:
    """The value of each rank."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def report(plain: Run, ours: Run, arguments: argparse.Namespace) -> bool:
    """Print all ranks side by side on rank 0; whether losses and plans are as they have to be."""
    digest = hashlib.sha256("\n".join(ours.plans).encode()).hexdigest()[:12]
    ranks = gathered((plain, ours, digest))
    same_plan = len({digest for _, _, digest in ranks}) == 1
    same_losses = all(a.losses == b.losses for a, b, _ in ranks)
    if dist.get_rank() == 0:
        console = Console(width=120)
        table = Table(title=f"{arguments.parallel}, {len(ranks)} processes", title_justify="left")
        for column in ("rank", "plan", "graphs", "last loss, plain", "snnmem",
                       "activations MB, plain", "snnmem", "step, x plain"):  # fmt: skip
            table.add_column(column, justify="right")
        for rank, (a, b, plan) in enumerate(ranks):
            ratio = a.activation_bytes / b.activation_bytes
            slower = statistics.median(b.step_ms) / statistics.median(a.step_ms)
            table.add_row(
                str(rank), plan, str(len(b.plans)), f"{a.losses[-1]:.6f}", f"{b.losses[-1]:.6f}",
                f"{a.activation_bytes / 1e6:.1f}",
                f"{b.activation_bytes / 1e6:.1f} ({ratio:.1f}x less)", f"{slower:.2f}",
            )  # fmt: skip
        console.print(table)
        console.print(f"plans of all ranks equal: {same_plan}; losses equal to plain's: "
                      f"{same_losses}, over {len(plain.losses)} steps")  # fmt: skip
    return same_plan and (same_losses or arguments.lowering != "eager")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parallel", choices=["ddp", "fsdp"], default="ddp")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch", type=int, default=16, help="of each rank and backward")
    parser.add_argument("--accumulate", type=int, default=1, help="backwards in a step")
    parser.add_argument("--amp", action="store_true", help="autocast to bfloat16")
    parser.add_argument("--level", type=int, default=4)
    parser.add_argument("--lowering", choices=["inductor", "eager"], default="eager")
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Train both ways; 1 where plans differ, or losses of the eager lowering."""
    arguments = parse(argv)
    dist.init_process_group("gloo")
    try:
        digits = load(arguments.seed)
        plain, ours = (train(arguments, digits, plain=plain) for plain in (True, False))
        succeeded = report(plain, ours, arguments)
        dist.barrier()  # a rank that leaves takes the connections of the others with it
        return int(not succeeded)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    raise SystemExit(main())
