"""Train a spiking convolutional network on handwritten digits, plain and with snnmem.

    python examples/train_digits.py

The data are scikit-learn's 1797 real 8x8 digits, which ship inside its package. Each image is the
input of all T=8 time steps (direct encoding). The network is trained from the same seed on the same
batches: as it is, and through `torch.compile(model, backend="snnmem")` in both lowerings. With the
eager one, both runs compute the same bits; with the inductor one, the default, sums are rounded in
another order, so that losses agree at first and then drift apart as little as two runs on different
machines would.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from measure import Memory, measure_memory, time_step
from models import conv_layer, lif

STEPS = 8
CLASSES = 10
REQUIRED_ACCURACY = 0.95
EXPECTED = {
    "inductor": "Its kernels round sums in another order: curves may drift apart.",
    "eager": "It runs the plain model's kernels: the curves must be equal.",
}

console = Console(width=None if os.isatty(1) else 100)


class DigitsNet(nn.Module):
    """Four spiking convolutions and a linear readout; `[N, 1, 8, 8]` to `[N, 10]`."""

    def __init__(self, channels: int = 32) -> None:
        super().__init__()
        self.features = nn.Sequential(
            conv_layer(1, channels, lif()),
            conv_layer(channels, channels, lif()),
            conv_layer(channels, 2 * channels, lif(), pool=nn.AvgPool2d(2)),
            conv_layer(2 * channels, 2 * channels, lif()),
        )
        self.readout = nn.Linear(2 * channels, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """Grey values in 0 to 1 to class scores, the mean over time."""
        spikes = self.features(image.unsqueeze(0).repeat(STEPS, 1, 1, 1, 1))
        return self.readout(spikes.mean((3, 4))).mean(0)


@dataclass
class Digits:
    """Images `[N, 1, 8, 8]` in 0 to 1 and their labels `[N]`."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor


@dataclass
class Run:
    """What one training run gave.

    Attributes:
        losses: of each training step.
        step_ms: of each training step.
        accuracy: on the test images, after training.
        memory: of one more step, after training.
    """

    losses: list[float] = field(default_factory=list)
    step_ms: list[float] = field(default_factory=list)
    accuracy: float = 0.0
    memory: Memory | None = None


def load(seed: int) -> Digits:
    """Split the digits into 1347 for training and 450 for the test."""
    digits = load_digits()
    split = train_test_split(
        digits.images, digits.target, test_size=450, stratify=digits.target, random_state=seed
    )
    images = [torch.tensor(part, dtype=torch.float32).unsqueeze(1) / 16 for part in split[:2]]
    labels = [torch.tensor(part) for part in split[2:]]
    return Digits(images[0], labels[0], images[1], labels[1])


def batches(count: int, size: int, epoch: int, seed: int) -> list[Tensor]:
    """Shuffled indices of full batches, the same ones for every run."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed + epoch))
    return [*order[: count - count % size].split(size)]


Compile = Callable[[nn.Module], Callable[[Tensor], Tensor]]


def train(
    name: str, compiled: Compile, digits: Digits, arguments: argparse.Namespace, bar: Progress
) -> Run:
    """Train one network from the seed, and measure it.

    Args:
        name: shown beside the progress bar.
        compiled: makes what is called for training in place of the model.
        digits: the data.
        arguments: of the command line.
        bar: where progress is shown.
    """
    torch.manual_seed(arguments.seed)
    model = DigitsNet()
    forward = compiled(model)
    total = arguments.epochs * (len(digits.train_x) // arguments.batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=total)
    run = Run()
    task = bar.add_task(name, total=total, loss=float("nan"))
    for epoch in range(arguments.epochs):
        for chosen in batches(len(digits.train_x), arguments.batch, epoch, arguments.seed):
            x, y = digits.train_x[chosen], digits.train_y[chosen]
            run.step_ms.append(
                time_step(lambda x=x, y=y: run.losses.append(_update(forward, optimizer, x, y)))
            )
            schedule.step()
            bar.update(task, advance=1, loss=run.losses[-1])
        if not console.is_terminal:
            console.print(f"{name}: epoch {epoch + 1}, loss {run.losses[-1]:.4f}")
    run.accuracy = accuracy(model, digits)
    x, y = digits.train_x[: arguments.batch], digits.train_y[: arguments.batch]
    run.memory = measure_memory(
        lambda: F.cross_entropy(forward(x), y).backward(), model.train(), (x,)
    )
    return run


def _update(
    forward: Callable[[Tensor], Tensor], optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor
) -> float:
    optimizer.zero_grad(set_to_none=True)
    loss = F.cross_entropy(forward(x), y)
    loss.backward()
    optimizer.step()
    return loss.item()


def accuracy(model: nn.Module, digits: Digits) -> float:
    """Share of the test images that the plain model classifies right."""
    model.eval()
    with torch.no_grad():
        return float((model(digits.test_x).argmax(1) == digits.test_y).float().mean())


def report(plain: Run, ours: dict[str, Run]) -> None:
    """Print all runs side by side, and how far their losses are from the plain one's."""
    table = Table(title=f"digits, T={STEPS}", title_justify="left")
    for column in ("", "plain", *(f"snnmem, {lowering}" for lowering in ours)):
        table.add_column(column, justify="right")
    runs = (plain, *ours.values())
    table.add_row("test accuracy", *(f"{run.accuracy:.2%}" for run in runs))
    table.add_row("last loss", *(f"{run.losses[-1]:.5f}" for run in runs))
    for label, field_name in (("peak", "peak_bytes"), ("activations", "activation_bytes")):
        sizes = [getattr(run.memory, field_name) / 1e6 for run in runs]
        table.add_row(f"{label}, MB", *(_with_ratio(size, sizes[0]) for size in sizes))
    times = [statistics.median(run.step_ms) for run in runs]
    table.add_row("median step, ms", *(_with_ratio(time, times[0]) for time in times))
    table.add_row("first step, s", *(f"{run.step_ms[0] / 1e3:.1f}" for run in runs))
    console.print(table)
    for lowering, run in ours.items():
        gaps = [abs(a - b) for a, b in zip(plain.losses, run.losses, strict=True)]
        console.print(
            f"{lowering}: largest difference from the plain loss curve over {len(gaps)} steps: "
            f"{max(gaps):.2e} (first 10 steps: {max(gaps[:10]):.2e}). {EXPECTED[lowering]}"
        )


def _with_ratio(value: float, reference: float) -> str:
    return f"{value:.1f} (x{value / reference:.2f})"


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--lowering", nargs="+", default=["inductor", "eager"], choices=["inductor", "eager"]
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Train all ways and compare; 1 where an accuracy is below 95% or equal curves differ."""
    arguments = parse(argv)
    digits = load(arguments.seed)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("loss {task.fields[loss]:.4f}"), console=console) as bar:
        plain = train("plain", lambda model: model, digits, arguments, bar)
        ours = {
            lowering: train(f"snnmem, {lowering}", _compile_with(lowering), digits, arguments, bar)
            for lowering in arguments.lowering
        }
    report(plain, ours)
    differ = "eager" in ours and plain.losses != ours["eager"].losses
    lowest = min(run.accuracy for run in (plain, *ours.values()))
    return int(differ or lowest < REQUIRED_ACCURACY)


def _compile_with(lowering: str) -> Compile:
    options = {"lowering": lowering}
    return lambda model: torch.compile(model, backend="snnmem", options=options)


if __name__ == "__main__":
    raise SystemExit(main())
