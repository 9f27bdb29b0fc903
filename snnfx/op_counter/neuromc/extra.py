"""Work besides products: somas, normalisation and optimizers; operations and memory, as tables.

Sizes, with the letters of `snnfx.op_counter.neuromc.piece.Loops`:

    K-map   OY OX K B T     KT      K T
    C-map   OY OX C B T     CT      C T
    params  all parameters that an optimizer updates

The rows for somas and normalisation are NeuroMC's (paper and code; see
`snnfx.op_counter.neuromc.costs`). Those for Adam follow from its update of one parameter w with
gradient g: m = b1 m + (1 - b1) g, v = b2 v + (1 - b2) g g, both divided by their bias corrections,
w -= rate m / (sqrt(v) + eps), with weight decay: 4 additions, 11 products and a root. NeuroMC
writes them for one normalised layer of K channels as 8 K + 4 FY FX K C additions: 4 for each of K
scales, K shifts and the weights. SpikingJelly 2.0.0 puts for K the number of all one-dimensional
parameters, scales and shifts together, and so counts each of these twice; here each parameter
counts once, which is NeuroMC's formula.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from snnfx.op_counter.neuromc.config import MemoryHierarchyConfig
from snnfx.op_counter.neuromc.costs import PRIMITIVES_PJ
from snnfx.op_counter.neuromc.mapping import Transfer, transfer
from snnfx.op_counter.neuromc.piece import Piece

Sizes = Mapping[str, int]


@dataclass(frozen=True)
class Variable:
    """One array that the work reads or writes.

    Attributes:
        name: as NeuroMC's code calls it.
        size: its number of elements.
        reads: how often each element is read, from SRAM and registers.
        writes: the levels that it is written to.
        sram: the memory that holds it.
        bits: of an element.
    """

    name: str
    size: str
    reads: int
    writes: tuple[str, ...]
    sram: str
    bits: int = 16


@dataclass(frozen=True)
class Work:
    """What one kind of work computes and moves.

    Attributes:
        operations: ``operations[primitive][size]`` is how many an element needs.
        variables: what it moves.
    """

    operations: Mapping[str, Sizes]
    variables: tuple[Variable, ...]


BOTH = ("reg", "sram")
_SUMS, _GRADIENTS = "sram_fp_conv_out_xi", "sram_bp_conv_out_res"

SOMA_FORWARD = Work(
    {"mux": {"K-map": 1}, "add": {"K-map": 1}, "mul": {"K-map": 1}, "comp": {"K-map": 3}},
    (
        Variable("fp_yi1", "K-map", 1, BOTH, _SUMS),
        Variable("fp_u_l", "K-map", 1, BOTH, "sram_fp_soma_u"),
        Variable("fp_s_l", "K-map", 1, BOTH, "sram_fp_soma_s", 1),
        Variable("fp_smask_l", "K-map", 0, BOTH, "sram_fp_soma_smask", 1),
    ),
)

SOMA_BACKWARD = Work(
    {"mux": {"C-map": 1}, "add": {"C-map": 2}, "mul": {"C-map": 4}},
    (
        Variable("bp_conv_res", "C-map", 1, (), _GRADIENTS),
        Variable("bp_u_l_pre", "C-map", 1, ("sram",), "sram_bp_grad_in_u"),
        Variable("bp_s_l_pre", "C-map", 1, (), "sram_bp_grad_in_s", 1),
        Variable("bp_smask_l_pre", "C-map", 1, (), "sram_bp_grad_in_smask", 1),
        Variable("bp_du_l_pre", "C-map", 1, ("reg",), "sram_bp_grad_out_du"),
    ),
)

NORM_FORWARD = Work(
    {"add": {"K-map": 3, "KT": 2}, "mul": {"K-map": 3, "KT": 4}, "sqrt": {"KT": 1}},
    (
        Variable("fp_bn_mean_v", "KT", 2, BOTH, "sram_2MB"),
        Variable("fp_bn_variance", "KT", 1, BOTH, "sram_2MB"),
        Variable("fp_bn_n", "K-map", 1, BOTH, "sram_2MB"),
        Variable("fp_bn_sqrt", "KT", 1, BOTH, "sram_2MB"),
        Variable("fp_bn_xi_", "K-map", 1, BOTH, "sram_2MB"),
        Variable("fp_bn_y", "KT", 1, (), "sram_2MB"),
        Variable("fp_bn_b", "KT", 1, (), "sram_2MB"),
    ),
)

NORM_BACKWARD = Work(
    {"add": {"C-map": 7}, "mul": {"C-map": 3, "CT": 22}},
    (
        Variable("bp_bn_du_l_pre1", "C-map", 2, (), "sram_2MB"),
        Variable("bp_bn_sqrt", "CT", 2, (), "sram_2MB"),
        Variable("bp_bn_y", "CT", 2, (), "sram_2MB"),
        Variable("bp_bn_m", "C-map", 3, BOTH, "sram_2MB"),
        Variable("bp_bn_n", "C-map", 3, (), "sram_2MB"),
        Variable("bp_bn_sigma_m", "CT", 1, BOTH, "sram_2MB"),
        Variable("bp_bn_sigma_n", "CT", 1, BOTH, "sram_2MB"),
        Variable("bp_bn_sigma_mn", "CT", 2, BOTH, "sram_2MB"),
        Variable("bp_bn_dy", "CT", 0, BOTH, "sram_2MB"),
        Variable("bp_bn_db", "CT", 0, BOTH, "sram_2MB"),
        Variable("bp_bn_du_l_pre2", "C-map", 0, BOTH, "sram_2MB"),
    ),
)

ADAM = Work(
    {"add": {"params": 4}, "mul": {"params": 11}, "sqrt": {"params": 1}},
    (
        Variable("opt_w", "params", 1, (), "sram_6MB", 32),
        Variable("opt_dw", "params", 1, (), "sram_6MB", 32),
        Variable("opt_v_w", "params", 1, BOTH, "sram_6MB", 32),
        Variable("opt_s_w", "params", 1, BOTH, "sram_6MB", 32),
        Variable("opt_vbc_w", "params", 1, BOTH, "sram_6MB", 32),
        Variable("opt_sbc_w", "params", 1, BOTH, "sram_6MB", 32),
        Variable("opt_w_updated", "params", 0, BOTH, "sram_6MB", 32),
    ),
)

WORK: Mapping[tuple[str, str], Work] = MappingProxyType(
    {
        ("soma.forward", "with_sg"): SOMA_FORWARD,
        ("soma.backward", "with_sg"): SOMA_BACKWARD,
        ("bn.forward", "with_bn"): NORM_FORWARD,
        ("bn.backward", "with_bn"): NORM_BACKWARD,
        ("adam", "with_opt"): ADAM,
        ("adamw", "with_opt"): ADAM,
    }
)
"""Work by operator and process key; `sgd_work` for SGD, whose work depends on its options."""


def extra_counts(piece: Piece) -> dict[str, int]:
    """Operations besides products, by primitive."""
    counts = dict.fromkeys(PRIMITIVES_PJ, 0)
    if not piece.batch_norm_backward:
        return counts
    sizes = _sizes(piece)
    for primitive, factors in _work_of(piece).operations.items():
        counts[primitive] = sum(factor * sizes[size] for size, factor in factors.items())
    return counts


def extra_transfers(piece: Piece, config: MemoryHierarchyConfig) -> list[Transfer]:
    """What a piece moves besides the operands of products."""
    sizes, transfers = _sizes(piece), list[Transfer]()
    for variable in _work_of(piece).variables:
        bits = sizes[variable.size] * variable.bits
        sram = config.memory_instances[variable.sram]
        register = config.memory_instances[f"reg_{variable.bits}b"]
        for level, spec in (("reg", register), ("sram", sram)):
            if level == "reg" and piece.op_name == "sgd":
                continue  # NeuroMC has no SGD; the peer's formula is between SRAM and arithmetic
            transfers += transfer(level, "rh2l", bits * variable.reads, spec, config)
            writes = bits * (level in variable.writes)
            transfers += transfer(level, "wl2h", writes, spec, config)
    return transfers


def sgd_work(momentum: bool, weight_decay: bool, has_buffer: bool) -> Work:
    """SGD, for each parameter: w -= rate d, with d = g, plus decay w, plus momentum times buffer.

    The first step with momentum only writes its buffer. Arrays are of 32 bits, in the SRAM of
    6 MB; SGD is not in the paper, the formula is SpikingJelly 2.0.0's.
    """
    remembers = momentum and has_buffer
    each = 1 + weight_decay + remembers
    buffer = Variable("buffer", "params", int(remembers), ("sram",), "sram_6MB", 32)
    return Work(
        {"add": {"params": each}, "mul": {"params": each}},
        (
            Variable("w", "params", 1, ("sram",), "sram_6MB", 32),
            Variable("dw", "params", 1, (), "sram_6MB", 32),
            *((buffer,) if momentum else ()),
        ),
    )


def _work_of(piece: Piece) -> Work:
    if piece.op_name == "sgd":
        return sgd_work(piece.has_momentum, piece.has_weight_decay, piece.has_momentum_buffer)
    return WORK.get((piece.op_name, piece.process_key), Work({}, ()))


def _sizes(piece: Piece) -> Sizes:
    loops = piece.loops
    places = loops.rows * loops.columns * loops.batch * loops.steps
    return {
        "K-map": places * loops.channels_out,
        "C-map": places * loops.channels_in,
        "KT": loops.channels_out * loops.steps,
        "CT": loops.channels_in * loops.steps,
        "params": loops.channels_out + loops.kernel_rows * loops.kernel_columns * loops.channels_in,
    }
