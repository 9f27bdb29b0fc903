"""Triton kernels of regions without a GPU; started by test_region_triton.py.

With ``TRITON_INTERPRET=1`` set: runs them in Triton's interpreter. With compute capabilities as
arguments: compiles them, and prints for each the capability, a name, bytes of PTX and of machine
code.
"""

from __future__ import annotations

import sys

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from snnfx.errors import KernelError
from snnfx.kernels.region_ir import Program
from snnfx.kernels.region_ops import OPERATIONS, Operation
from snnfx.kernels.region_reference import run_reference
from snnfx.kernels.region_triton import BLOCK, TritonRegion, emit_triton

from tests.kernels.region_cases import layout_of, lif_forward, lif_tensors
from tests.kernels.region_operation_cases import DTYPES, SIZE, check_result, operand, program_of

POINTERS = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.bool: "*u8",
    torch.uint8: "*u8",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


def available(dtype: torch.dtype) -> list[Operation]:
    """The operations that Triton kernels have for `dtype`, by trying."""
    found = list[Operation]()
    for op in OPERATIONS.values():
        if dtype in op.accepts and op.name != "pow":
            try:
                emit_triton(program_of([op], dtype)[0])
            except KernelError:
                continue
            found.append(op)
    return found


def run_on(
    program: Program,
    inputs: list[torch.Tensor],
    outputs: list[torch.Tensor],
    shape: tuple[int, ...],
) -> list[torch.Tensor]:
    """Run the Triton kernel into `outputs`; returns the reference's."""
    expected = [output.clone() for output in outputs]
    run_reference(program, inputs, expected, shape)
    layouts = [layout_of(view) for view in inputs], [layout_of(view) for view in outputs]
    TritonRegion(program)(inputs, outputs, shape, *layouts)
    return expected


def interpret_operations() -> int:
    checked = 0
    for dtype in DTYPES:
        # The interpreter truncates to bfloat16 instead of rounding.
        ops = [op for op in available(dtype) if op.name != "round_bfloat16"]
        program, owners = program_of(ops, dtype)
        inputs = [operand(dtype)[None], operand(dtype)[None], operand(torch.bool)[None]]
        results = [torch.zeros(1, SIZE, dtype=buffer.dtype) for buffer in program.outputs]
        expected = run_on(program, inputs, results, (SIZE,))
        for op, result, reference in zip(owners, results, expected, strict=True):
            check_result(op, dtype, result, reference)
            checked += 1
    return checked


def interpret_neurons() -> int:
    checked = 0
    for shape in [(2, 3, 5, 7), (1, 1, 1, 1), (0, 3, 2, 2)]:
        for channels_last in (False, True):
            inputs, outputs, _ = lif_tensors(10, shape, channels_last=channels_last)
            expected = run_on(lif_forward(10), inputs[:5], outputs, shape)
            assert all(torch.equal(o, e) for o, e in zip(outputs, expected, strict=True)), shape
            checked += 1
    return checked


def compile_ahead(name: str, program: Program, capability: int) -> None:
    kernel = TritonRegion(program).kernel
    buffers = (*program.inputs, *program.outputs)
    signature = dict.fromkeys(kernel.arg_names, "i64")
    pointers = [POINTERS[buffer.dtype] for buffer in buffers]
    signature |= dict(zip(kernel.arg_names[: len(buffers)], pointers, strict=True))
    signature["BLOCK"] = "constexpr"
    source = ASTSource(fn=kernel, signature=signature, constexprs={"BLOCK": BLOCK})
    target = GPUTarget("cuda", capability, 32)
    asm = triton.compile(source, target=target, options={"enable_fp_fusion": False}).asm
    print(capability, name, len(asm.get("ptx", "")), len(asm.get("cubin", b"")))


def main(capabilities: list[int]) -> None:
    torch.manual_seed(0)
    if not capabilities:
        print(interpret_operations() + interpret_neurons())
    for capability in capabilities:
        compile_ahead("lif_forward", lif_forward(10), capability)
        for dtype in DTYPES:
            compile_ahead(str(dtype), program_of(available(dtype), dtype)[0], capability)


if __name__ == "__main__":
    main([int(argument) for argument in sys.argv[1:]])
