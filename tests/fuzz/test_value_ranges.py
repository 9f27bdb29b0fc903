"""What the value-range analysis claims of random networks holds for every element of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch._decomp import core_aten_decompositions
from torch._inductor.decomposition import select_decomp_table
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from tests.fuzz.grids import ClaimChecker, Tally
from tests.fuzz.network import Network, build, make_inputs, reset
from tests.fuzz.programs import Program, from_seed

DIALECTS: dict[str, Callable[[], dict[Any, Any]]] = {
    "raw": dict,
    "core": core_aten_decompositions,
    "inductor": select_decomp_table,
}
PROGRAMS = 30


def forward_graph(
    network: Network, inputs: tuple[torch.Tensor, ...], table: dict[Any, Any]
) -> GraphModule:
    """The forward of a network as a graph of ATen ops, some in place; parameters are constants."""

    def run(*args: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return network(*(x.clone() for x in args))

    return make_fx(run, decomposition_table=table)(*inputs)


def broken_claims(program: Program, table: dict[Any, Any], tally: Tally) -> list[str]:
    """The claims about a program's network that a run of it on other inputs breaks."""
    program = replace(program, batch=(program.batch[0], program.batch[0]))
    torch.manual_seed(0)
    network, inputs = build(program), tuple(x.detach() for x in make_inputs(program, 0))
    with torch.no_grad():
        graph = forward_graph(network, inputs, table)
        reset(network)
        return ClaimChecker(graph, tally).check(list(make_inputs(program, 1)))


def counts_batches(program: Program) -> bool:
    """Whether a norm reads a number off a tensor, which cannot be traced."""
    return any(step.op == "norm" and step.args[0] == "average" for step in program.steps)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_claim_about_a_random_network_holds(dialect: str) -> None:
    table, tally = DIALECTS[dialect](), Tally()
    programs = [p for p in map(from_seed, range(PROGRAMS)) if not counts_batches(p)]
    for program in programs:
        assert broken_claims(program, table, tally) == [], program
    assert tally.packed > 500
