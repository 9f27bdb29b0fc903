"""Compiling regions with the machine's C++ compiler, and calling them.

A compiled region is a shared library, kept on disk under a hash of its source, flags, compiler and
CPU, in ``SNNFX_CACHE_DIR`` or the folder for temporary files. It serves all sizes and layouts.
"""

from __future__ import annotations

import ctypes
import functools
import getpass
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from snnfx.errors import KernelError
from snnfx.kernels.region_cpp import block_elements, emit_cpp
from snnfx.kernels.region_ir import Program
from snnfx.kernels.region_layout import Layout, Windows, geometry

FLAGS = (
    "-std=c++17",
    "-O3",
    "-march=native",
    "-fopenmp",
    "-shared",
    "-fPIC",
    "-fwrapv",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
)
"""None of these changes a result: the last two give up only ``errno`` and floating-point traps."""

ENTRY = "snnfx_region"


def cache_folder() -> Path:
    """Where compiled regions are kept: ``SNNFX_CACHE_DIR``, else in the temporary folder."""
    given = os.environ.get("SNNFX_CACHE_DIR")
    return Path(given) if given else Path(tempfile.gettempdir()) / f"snnfx_{getpass.getuser()}"


def find_compiler() -> tuple[str, ...]:
    """The command of the C++ compiler: ``CXX`` if set, else g++ or clang++.

    Raises:
        KernelError: none is installed.
    """
    given = shlex.split(os.environ.get("CXX", ""))
    candidates = [given] if given else [["g++"], ["clang++"], ["c++"]]
    for command in candidates:
        path = shutil.which(command[0])
        if path:
            return (path, *command[1:])
    tried = ", ".join(command[0] for command in candidates)
    raise KernelError(
        f"no C++ compiler found (tried {tried}); install g++ or clang++, or set CXX to one"
    )


@functools.cache
def _identity(compiler: tuple[str, ...]) -> str:
    """What else than source and flags decides what the compiler makes: its version, the CPU."""
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=False)
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else [platform.processor()]
    keys = ("model name", "flags", "Features", "CPU part")
    described = sorted({line for line in lines if line.startswith(keys)})
    return "\n".join([version.stdout, platform.machine(), *described])


def _library_path(source: str, compiler: tuple[str, ...]) -> Path:
    text = "\0".join([source, *FLAGS, *compiler, _identity(compiler)])
    return cache_folder() / f"region_{hashlib.sha256(text.encode()).hexdigest()[:32]}.so"


def _require_own(folder: Path) -> None:
    """Never load code from a folder that another user made, as anyone may in a shared /tmp."""
    if hasattr(os, "getuid") and folder.exists() and folder.stat().st_uid != os.getuid():
        raise KernelError(
            f"{folder} belongs to another user, so no compiled region is loaded from it; set "
            "SNNFX_CACHE_DIR to a folder of your own"
        )


def build_library(source: str) -> Path:
    """Compile `source`, unless that was done before.

    Returns:
        Path of the shared library.

    Raises:
        KernelError: there is no compiler, it refuses the source, or the cache cannot be written.
    """
    compiler = find_compiler()
    library = _library_path(source, compiler)
    _require_own(library.parent)
    if library.exists():
        return library
    try:
        library.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            code, made = Path(folder) / "region.cpp", Path(folder) / "region.so"
            code.write_text(source)
            command = [*compiler, *FLAGS, str(code), "-o", str(made), "-lm"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise KernelError(f"{shlex.join(command)} failed:\n{done.stderr[-2000:]}")
            made.replace(library)  # atomic: other processes may be building the same
    except OSError as error:
        raise KernelError(
            f"cannot write compiled regions to {library.parent} ({error}); set SNNFX_CACHE_DIR to "
            "a folder that can be written"
        ) from error
    return library


Extents = tuple[tuple[int, ...], ...]
"""For each input, its own sizes in the dims in which it is windowed."""


class LaunchPlan:
    """A kernel together with sizes and layouts: all of a call but the pointers."""

    def __init__(
        self,
        kernel: RegionKernel,
        base_sizes: Sequence[int],
        input_layouts: Sequence[Layout],
        output_layouts: Sequence[Layout],
        extents: Extents = (),
    ) -> None:
        program = kernel.program
        layout = geometry(
            base_sizes,
            input_layouts,
            output_layouts,
            program.sum_outputs(),
            kernel.block,
            _windows(program, extents),
        )
        self._function = kernel.function
        self._tiles, self._max_threads = layout.tiles, layout.max_threads
        # The arrays must outlive the calls that point at them.
        self._arrays = tuple(
            (ctypes.c_int64 * max(1, len(values)))(*values)
            for values in (layout.header, layout.strides, layout.offsets)
        )
        self._pointers = ctypes.c_void_p * max(1, len(program.inputs) + len(program.outputs))

    def __call__(self, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]) -> None:
        """Run the kernel on tensors whose first elements are those of step 0, index 0."""
        pointers = self._pointers(*[t.data_ptr() for t in (*inputs, *outputs)])
        threads = min(torch.get_num_threads(), self._max_threads)
        self._function(pointers, *self._arrays, self._tiles, threads)


class RegionKernel:
    """A compiled program.

    Attributes:
        program: what it computes.
        source: its C++.
    """

    def __init__(self, program: Program, source: str, library: Path) -> None:
        self.program = program
        self.source = source
        self.block = block_elements(program)
        self.function = _load(library)
        self._plans: dict[object, LaunchPlan] = {}

    def __call__(
        self,
        inputs: Sequence[torch.Tensor],
        outputs: Sequence[torch.Tensor],
        base_sizes: tuple[int, ...],
        input_layouts: tuple[Layout, ...],
        output_layouts: tuple[Layout, ...],
        extents: Extents = (),
    ) -> None:
        """Run the program, on as many threads as torch uses.

        Args:
            inputs: tensors of the program's input dtypes, on the CPU; their shapes play no part,
                their first element is that of step 0 and index 0.
            outputs: tensors that are written, likewise.
            base_sizes: sizes of the base dims.
            input_layouts: of each input, ``(step stride, stride of each base dim)`` in elements.
            output_layouts: of each output, likewise; a sum is over the dims of stride 0.
            extents: of each input, its own sizes in the dims in which it is windowed; may be left
                out if none is.

        Raises:
            KernelError: numbers of tensors, dtypes, devices or layouts do not fit the program.
        """
        key = (base_sizes, input_layouts, output_layouts, extents)
        plan = self._plans.get(key)
        if plan is None:
            self._check(inputs, outputs)
            plan = self.prepare(base_sizes, input_layouts, output_layouts, extents)
            self._plans[key] = plan
        plan(inputs, outputs)

    def prepare(
        self,
        base_sizes: Sequence[int],
        input_layouts: Sequence[Layout],
        output_layouts: Sequence[Layout],
        extents: Extents = (),
    ) -> LaunchPlan:
        """Plan the loops for some sizes and layouts; arguments as in a call.

        Raises:
            KernelError: sizes or layouts are not of the program's rank or number of buffers.
        """
        program = self.program
        for name, layouts, buffers in (
            ("input", input_layouts, program.inputs),
            ("output", output_layouts, program.outputs),
        ):
            if len(layouts) != len(buffers):
                raise KernelError(f"{len(layouts)} {name} layouts for {len(buffers)} {name}s")
            for index, (_, strides) in enumerate(layouts):
                if len(strides) != program.rank:
                    raise KernelError(
                        f"{name} layout {index} has {len(strides)} base strides; the program's "
                        f"rank is {program.rank}"
                    )
        if len(base_sizes) != program.rank:
            raise KernelError(f"base sizes {base_sizes}; the program's rank is {program.rank}")
        _check_written(program, base_sizes, output_layouts)
        return LaunchPlan(self, base_sizes, input_layouts, output_layouts, extents)

    def _check(self, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]) -> None:
        for name, tensors, buffers in (
            ("input", inputs, self.program.inputs),
            ("output", outputs, self.program.outputs),
        ):
            if len(tensors) != len(buffers):
                raise KernelError(f"{len(tensors)} {name}s; the program has {len(buffers)}")
            for index, (tensor, buffer) in enumerate(zip(tensors, buffers, strict=True)):
                if tensor.dtype != buffer.dtype or tensor.device.type != "cpu":
                    raise KernelError(
                        f"{name} {index} is {tensor.dtype} on {tensor.device}; the program takes "
                        f"{buffer.dtype} on cpu"
                    )


def _windows(program: Program, extents: Extents) -> Windows:
    """The windows of a call.

    Raises:
        KernelError: `extents` does not give the sizes of the windowed inputs.
    """
    given = extents or ((),) * len(program.inputs)
    if [len(own) for own in given] != [len(buffer.windowed) for buffer in program.inputs]:
        windowed = [buffer.windowed for buffer in program.inputs]
        raise KernelError(f"extents {extents} for inputs that are windowed in the dims {windowed}")
    pairs = zip(program.inputs, given, strict=True)
    own = tuple(dict(zip(buffer.windowed, sizes, strict=True)) for buffer, sizes in pairs)
    return Windows(program.window_dims(), own)


def _check_written(
    program: Program, base_sizes: Sequence[int], output_layouts: Sequence[Layout]
) -> None:
    """A stored output must have a place of its own for every element."""
    for index, (_, strides) in enumerate(output_layouts):
        shared = [d for d, size in enumerate(base_sizes) if size > 1 and strides[d] == 0]
        if shared and index not in program.sum_outputs():
            raise KernelError(
                f"output {index} has stride 0 in base dims {shared}, so that elements would "
                "overwrite each other; only a ChannelSum may"
            )


@functools.cache
def _load(library: Path) -> Callable[..., None]:
    function = ctypes.CDLL(str(library))[ENTRY]
    array = ctypes.c_void_p
    function.argtypes = [array, array, array, array, ctypes.c_int64, ctypes.c_int64]
    function.restype = None
    return function


def compile_program(program: Program) -> RegionKernel:
    """Compile `program`, or find it compiled.

    Raises:
        KernelError: the program is not valid, or could not be compiled; the text says why.
    """
    source = emit_cpp(program)
    return RegionKernel(program, source, build_library(source))


def compile_many(programs: Sequence[Program], jobs: int | None = None) -> list[RegionKernel]:
    """Compile several programs, `jobs` (by default one a CPU) compilers at a time.

    Raises:
        KernelError: as `compile_program`.
    """
    sources = [emit_cpp(program) for program in programs]
    distinct = list(dict.fromkeys(sources))
    with ThreadPoolExecutor(jobs or os.cpu_count() or 1) as pool:
        libraries = dict(zip(distinct, pool.map(build_library, distinct), strict=True))
    return [
        RegionKernel(program, source, libraries[source])
        for program, source in zip(programs, sources, strict=True)
    ]
