"""Triton kernels of regions without a GPU: the interpreter's results, and builds for real GPUs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from snnfx.errors import KernelError
from snnfx.kernels.region_ir import Buffer, Load, Position, Program, Store, Window
from snnfx.kernels.region_triton import emit_triton

from tests.kernels.region_cases import Builder, lif_backward
from tests.kernels.test_bitpack_triton import run_script

SCRIPT = "region_triton_cases.py"


def test_interpreted_kernels_equal_the_reference() -> None:
    assert int(run_script(SCRIPT, TRITON_INTERPRET="1")) > 120


@pytest.mark.parametrize("capability", ["80", "90"])
def test_kernels_compile_ahead_of_time(capability: str, tmp_path: Path) -> None:
    lines = run_script(SCRIPT, capability, TRITON_CACHE_DIR=str(tmp_path)).splitlines()
    assert len(lines) == 7
    for line in lines:
        built_for, _, ptx_bytes, cubin_bytes = line.split()
        assert built_for == capability
        assert int(ptx_bytes) > 0, line
        assert int(cubin_bytes) > 0, line


def test_sums_are_refused() -> None:
    with pytest.raises(KernelError, match="Triton kernels of regions have no sums"):
        emit_triton(lif_backward(2))


@pytest.mark.parametrize("read", [Load(0, 0, (Window(0, 2),)), Position(0)], ids=str)
def test_windows_are_refused(read: Load | Position) -> None:
    is_load = isinstance(read, Load)
    source = Buffer(torch.float32, (0,) if is_load else ())
    result = Buffer(torch.float32 if is_load else torch.int32)
    program = Program((source,), (result,), 1, (read, Store(0, 0, 0)))
    with pytest.raises(KernelError, match="Triton kernels of regions have no windows"):
        emit_triton(program)


@pytest.mark.parametrize("name", ["tanh", "log1p"])
def test_operations_without_an_exact_form_are_refused(name: str) -> None:
    builder = Builder()
    builder.store(0, 0, builder.op(name, builder.load(0, 0, torch.float32)))
    with pytest.raises(KernelError, match=f"have no '{name}'"):
        emit_triton(builder.program([torch.float32], [torch.float32], 1))


def test_powers_that_are_no_products_or_roots_are_refused() -> None:
    builder = Builder()
    x, exponent = builder.load(0, 0, torch.float32), builder.constant(1.7, torch.float32)
    builder.store(0, 0, builder.op("pow", x, exponent))
    with pytest.raises(KernelError, match=r"no power 1\.7"):
        emit_triton(builder.program([torch.float32], [torch.float32], 1))


def test_the_kernel_module_is_imported_only_where_triton_is() -> None:
    code = "import sys, snnfx.kernels.region_build; assert 'triton' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True)
