"""Compiles the Triton kernels for given GPUs, without one; started by test_bitpack_triton.py.

Prints one line for each compiled kernel: compute capability, kernel, dtype, bytes of PTX, bytes of
machine code.
"""

from __future__ import annotations

import itertools
import sys
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from snnfx.kernels.bitpack_triton import (
    constants,
    pack_kernel,
    pack_mode,
    unpack_kernel,
    unpack_mode,
)

POINTERS = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.uint8: "*u8",
    torch.int64: "*i64",
}


def compile_kernel(
    kernel: Any, pointers: dict[str, str], options: dict[str, Any], capability: int
) -> dict[str, Any]:
    signature = {**pointers, "steps": "i64", "width": "i64", "count": "i64"}
    signature |= dict.fromkeys(options, "constexpr")
    source = ASTSource(fn=kernel, signature=signature, constexprs=options)
    target = GPUTarget("cuda", capability, 32)
    return triton.compile(source, target=target, options={"enable_fp_fusion": False}).asm


def main(capabilities: list[int]) -> None:
    for capability, (dtype, pointer) in itertools.product(capabilities, POINTERS.items()):
        for bits, scale, lo in [(1, 1.0, 0), (4, 3.0, 1), (8, 1.0, 0)]:
            wide = {"x_ptr": pointer, "out_ptr": "*u8"}
            options = constants(bits, scale, lo, pack_mode(dtype, bits, lo))
            packed = compile_kernel(pack_kernel, wide, options, capability)
            wide = {"packed_ptr": "*u8", "out_ptr": pointer}
            options = constants(bits, scale, lo, unpack_mode(dtype, scale))
            unpacked = compile_kernel(unpack_kernel, wide, options, capability)
            for name, asm in [("pack", packed), ("unpack", unpacked)]:
                print(capability, name, dtype, len(asm.get("ptx", "")), len(asm.get("cubin", b"")))


if __name__ == "__main__":
    main([int(argument) for argument in sys.argv[1:]])
