"""Finding the compiler, the cache on disk, and the code that is made."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from snnfx.errors import KernelError
from snnfx.kernels import region_build
from snnfx.kernels.region_build import (
    build_library,
    cache_folder,
    compile_many,
    compile_program,
    find_compiler,
)
from snnfx.kernels.region_cpp import block_elements, emit_cpp
from snnfx.kernels.region_ir import Buffer, Constant, Program, Store

from tests.kernels.region_cases import lif_backward, lif_forward


def constant_program(value: float) -> Program:
    instructions = (Constant(value, torch.float32), Store(0, 0, 0))
    return Program((), (Buffer(torch.float32),), 1, instructions)


def value_of(kernel: region_build.RegionKernel) -> float:
    result = torch.zeros(1)
    kernel([], [result], (1,), (), ((0, (1,)),))
    return result.item()


def test_the_cache_folder_is_named_by_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SNNFX_CACHE_DIR", str(tmp_path / "a"))
    assert cache_folder() == tmp_path / "a"
    monkeypatch.delenv("SNNFX_CACHE_DIR")
    assert cache_folder().name.startswith("snnfx_")


def test_a_program_is_compiled_once_and_nothing_else_is_left(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SNNFX_CACHE_DIR", str(tmp_path))
    assert value_of(compile_program(constant_program(1.5))) == 1.5
    (library,) = tmp_path.iterdir()
    made = library.stat().st_mtime_ns
    assert value_of(compile_program(constant_program(1.5))) == 1.5
    assert [path.stat().st_mtime_ns for path in tmp_path.iterdir()] == [made]


def test_other_flags_make_another_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SNNFX_CACHE_DIR", str(tmp_path))
    source = emit_cpp(constant_program(2.5))
    first = build_library(source)
    monkeypatch.setattr(region_build, "FLAGS", (*region_build.FLAGS, "-O1"))
    assert build_library(source) != first


def test_many_programs_are_compiled_at_a_time_and_equal_ones_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SNNFX_CACHE_DIR", str(tmp_path))
    values = [1.0, 2.0, 1.0, -0.0]
    kernels = compile_many([constant_program(value) for value in values], jobs=2)
    assert [str(value_of(kernel)) for kernel in kernels] == [str(value) for value in values]
    assert len(list(tmp_path.iterdir())) == 3


def test_two_processes_may_build_the_same(tmp_path: Path) -> None:
    code = (
        "from tests.kernels.test_region_build import *\n"
        "assert value_of(compile_program(constant_program(7.0))) == 7.0\n"
    )
    root = Path(__file__).parents[2]
    environment = {**region_build.os.environ, "SNNFX_CACHE_DIR": str(tmp_path)}
    children = [
        subprocess.Popen([sys.executable, "-c", code], cwd=root, env=environment) for _ in range(2)
    ]
    assert [child.wait(120) for child in children] == [0, 0]
    assert len(list(tmp_path.iterdir())) == 1


def test_without_a_compiler_the_error_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(KernelError, match=r"tried g\+\+, clang\+\+, c\+\+.*install g\+\+ or clang"):
        find_compiler()


def test_the_environment_names_the_compiler_and_its_arguments(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = find_compiler()[0]
    monkeypatch.setenv("CXX", f"{path} -Wall")
    assert find_compiler() == (path, "-Wall")
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(KernelError, match="tried no-such-compiler"):
        find_compiler()


def test_a_compiler_that_fails_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SNNFX_CACHE_DIR", str(tmp_path))
    with pytest.raises(KernelError, match=r"failed:[\s\S]*error"):
        build_library("this is not C++")
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SNNFX_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(KernelError, match="set SNNFX_CACHE_DIR to a folder that can be written"):
        build_library(emit_cpp(constant_program(3.0)))


def compiled_with(flags: Sequence[str], source: str, folder: Path) -> str:
    """Compile `source` to nowhere, and return what the compiler says."""
    code = folder / "region.cpp"
    code.write_text(source)
    command = [*find_compiler(), *region_build.FLAGS, *flags, str(code), "-o", "/dev/null", "-S"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stderr


@pytest.mark.parametrize(
    "program", [lif_forward(10), lif_backward(10)], ids=["forward", "backward"]
)
def test_the_main_loop_is_vectorised(program: Program, tmp_path: Path) -> None:
    source = emit_cpp(program)
    before, _, after = source.partition("void compute(Workspace& w, int64_t vectors) {")
    first = before.count("\n") + 1
    last = first + after.partition("\n}")[0].count("\n")
    said = compiled_with(["-fopt-info-vec-optimized"], source, tmp_path)
    found = {int(line) for line in re.findall(r":(\d+):\d+: optimized: loop vectorized", said)}
    if found:  # clang says nothing here
        assert found & set(range(first, last + 1))
    else:
        assert "clang" in region_build._identity(find_compiler()).lower()


def test_generated_code_has_no_warnings(tmp_path: Path) -> None:
    assert (
        compiled_with(
            ["-Wall", "-Wextra", "-Wno-unused-variable"], emit_cpp(lif_backward(9)), tmp_path
        )
        == ""
    )


def test_blocks_shrink_with_the_number_of_slices() -> None:
    sizes = [block_elements(lif_backward(steps)) for steps in (1, 4, 10, 64)]
    assert sizes == sorted(sizes, reverse=True)
    assert all(size & (size - 1) == 0 for size in sizes)


def test_a_cache_of_another_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SNNFX_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("os.getuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(KernelError, match="belongs to another user"):
        build_library("int unused;")
