"""Random spiking networks as small declarative programs, drawn by hypothesis or from a seed.

A program is data: it prints as the Python that makes it again, and any of its steps can be left out
without making it invalid, which is what lets `shrink` make failures small. What each step does, and
what it takes, is in `operations`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from tests.fuzz.operations import ARGUMENTS

Pick = Callable[[Sequence[Any]], Any]
"""Chooses one of several options: all that a program is drawn from."""

FORMS = ("image", "image", "sequence", "features", "features")
LAYOUTS = ("contiguous", "contiguous", "channels_last", "batch_first", "strided", "expanded")
WEIGHTS = ("conv", "conv", "linear")
EXTRAS = ("pool", "pool", "combine", "combine", "attention", "dropout", "inplace", "shape",
          "pointwise", "cast", "buffer", "again", "neuron", "readout")  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One layer.

    Attributes:
        op: its kind, a key of `operations.OPERATIONS`.
        args: what the kind is built with.
        source: how many values back its input is.
        other: which of the values of the shape that it needs is its second input.
    """

    op: str
    args: tuple[Any, ...] = ()
    source: int = 0
    other: int = 0


@dataclass(frozen=True)
class Program:
    """A network, its inputs, and how it is trained for two steps.

    Attributes:
        form: of the inputs: image ``[T, N, C, H, W]``, sequence ``[T, N, C, L]``, or features
            ``[T, N, C]``.
        steps: the layers.
        time: T.
        batch: N in the first and in the second step.
        channels: C.
        size: H, W - 1 and L.
        dtype: of parameters and inputs.
        layout: how inputs lie in memory.
        inputs: how many there are.
        input_dtype: of the last input; "" for `dtype`.
        input_grad: whether the first input needs a gradient.
        static: whether inputs have no time axis, and are repeated.
        outputs: which values are returned beside the last.
        unused: whether only the last output takes part in the loss.
        carried: whether states go on from one step to the next.
        training: False is evaluation mode, with gradients.
        frozen: every how manieth parameter needs no gradient; 0 for none.
        optimizer: whether parameters are updated between the steps.
        autocast: whether the forward runs under bfloat16 autocast.
        inference: whether a call without gradients comes first.
    """

    form: str = "features"
    steps: tuple[Step, ...] = ()
    time: int = 4
    batch: tuple[int, int] = (2, 2)
    channels: int = 4
    size: int = 6
    dtype: str = "float64"
    layout: str = "contiguous"
    inputs: int = 1
    input_dtype: str = ""
    input_grad: bool = True
    static: bool = False
    outputs: tuple[int, ...] = ()
    unused: bool = False
    carried: bool = False
    training: bool = True
    frozen: int = 0
    optimizer: bool = True
    autocast: bool = False
    inference: bool = False

    @property
    def precision(self) -> str:
        """The coarsest dtype that anything is computed in."""
        casts = {step.args[0] for step in self.steps if step.op == "cast"}
        if self.autocast or casts & {"bfloat16", "float16"}:
            return "bfloat16"
        return "float32" if "float32" in {self.dtype, self.input_dtype, *casts} else "float64"


def from_seed(seed: int, layers: int = 3) -> Program:
    """The program of a seed, of at most so many layers with neurons."""
    return draw_program(random.Random(seed).choice, layers)


@st.composite
def programs(draw: Any) -> Program:
    """All programs; hypothesis shrinks towards the first option of each choice."""
    return draw_program(lambda options: draw(st.sampled_from(options)), 2)


def draw_program(pick: Pick, layers: int = 3) -> Program:
    """One program from a source of choices."""
    seldom = (False, False, False, False, False, True)
    batch = pick((1, 2, 2, 3, 4))
    count = min(layers, pick((1, 1, 1, 2, 2, 3)))
    steps = [step for _ in range(count) for step in _draw_layer(pick)]
    return Program(
        form=pick(FORMS),
        steps=tuple(steps),
        time=pick((4, 1, 2, 2, 2, 3, 3, 3, 4, 4, 5, 6, 7, 8, 12)),
        batch=(batch, pick((1, 2, 3, 5)) if pick((*seldom, *seldom[:5])) else batch),
        channels=pick((4, 2, 3, 6)),
        size=pick((6, 4, 5, 8)),
        dtype=pick(("float64", "float64", "float32")),
        layout=pick(LAYOUTS),
        inputs=pick((1, 1, 1, 2, 3)),
        input_dtype=pick(("", "", "", "float32", "uint8", "bool", "bfloat16")),
        input_grad=pick((True, False)),
        static=pick(seldom),
        outputs=tuple(pick(range(8)) for _ in range(pick((0, 0, 0, 1, 2)))),
        unused=pick((False, False, True)),
        carried=pick((False, False, False, False, True)),
        training=pick((True, True, True, True, False)),
        frozen=pick((0, 0, 0, 1, 2, 3)),
        optimizer=pick((True, False)),
        autocast=pick((*seldom, False, False)),
        inference=pick((*seldom, *seldom[:5])),
    )


def _draw_layer(pick: Pick) -> list[Step]:
    """A weight layer with its neuron, and what users put around them."""
    kinds = [pick(WEIGHTS)]
    kinds += ["norm"] if pick((False, True)) else []
    kinds += ["neuron"]
    kinds += [pick(EXTRAS) for _ in range(pick((0, 1, 2, 2)))]
    return [_draw_step(kind, pick) for kind in kinds]


def _draw_step(kind: str, pick: Pick) -> Step:
    args = tuple(pick(options) for options in ARGUMENTS[kind])
    source = pick((0, 0, 0, 0, 0, 0, 1, 2))
    return Step(kind, args, source, pick(range(4)))
