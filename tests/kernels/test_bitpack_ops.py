"""The registered operators under autograd, fake tensors, tracing and compilation."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.fx.experimental.proxy_tensor import make_fx
from torch.library import opcheck

from snnfx.errors import PackError
from snnfx.kernels.bitpack_reference import pack_bits_reference, unpack_bits_reference
from snnfx.kernels.decompositions import DECOMPOSITIONS
from snnfx.kernels.ops import pack_bits, unpack_bits

from tests.kernels.bitpack_cases import grid_tensor, same_bits

# Importing Inductor for the first time in a process warns about its own use of TorchScript.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script.*:DeprecationWarning")

PACK = torch.ops.snnfx.pack_bits.default
UNPACK = torch.ops.snnfx.unpack_bits.default


@pytest.mark.parametrize("layout", ["flat", "time"])
@pytest.mark.parametrize(
    ("dtype", "bits", "scale", "lo"),
    [(torch.float32, 1, 1.0, 0), (torch.bfloat16, 4, 0.25, -2), (torch.int64, 2, 3.0, 0)],
)
def test_opcheck_passes(layout, dtype, bits, scale, lo) -> None:
    x, _ = grid_tensor([10, 3, 5], dtype, bits, scale, lo)
    if dtype.is_floating_point:
        x.requires_grad_()
    packed = pack_bits(x, bits, layout, scale, lo)
    opcheck(PACK, (x, bits, layout, scale, lo))
    opcheck(UNPACK, (packed, [10, 3, 5], dtype, bits, layout, scale, lo))


def test_schema_is_the_documented_one() -> None:
    assert str(PACK._schema) == (
        'snnfx::pack_bits(Tensor x, int bits, str layout="flat", float scale=1., int lo=0)'
        " -> Tensor"
    )
    assert str(UNPACK._schema) == (
        "snnfx::unpack_bits(Tensor packed, SymInt[] shape, ScalarType dtype, int bits, "
        'str layout="flat", float scale=1., int lo=0) -> Tensor'
    )


def test_neither_operator_has_a_gradient() -> None:
    x = torch.ones(16, requires_grad=True)
    packed = pack_bits(x, 1)
    assert not packed.requires_grad
    assert not unpack_bits(packed, [16], torch.float32, 1).requires_grad


def test_devices_without_a_kernel_run_the_reference() -> None:
    packed = pack_bits(torch.empty(3, 5, device="meta"), 1, "time")
    assert (packed.device.type, packed.dtype, packed.shape) == ("meta", torch.uint8, (1, 5))


@pytest.mark.parametrize("layout", ["flat", "time"])
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_once_for_all_batch_sizes(layout: str, backend: str) -> None:
    def round_trip(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        packed = pack_bits(x * 2.0, 2, layout)
        return packed, unpack_bits(packed, x.shape, x.dtype, 2, layout) + 1.0

    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(round_trip, backend=counter, fullgraph=True, dynamic=True)
    for batch in (3, 5, 8):
        x, _ = grid_tensor([4, batch, 6], torch.float32, 1)
        packed, values = compiled(x)
        assert same_bits(packed, pack_bits_reference(x * 2.0, 2, layout))
        assert same_bits(values, x * 2.0 + 1.0)
    assert counter.frame_count == 1


@pytest.mark.parametrize("mode", ["real", "symbolic"])
@pytest.mark.parametrize("bits", [1, 4, 8])
def test_decompositions_replace_both_operators_in_a_trace(mode: str, bits: int) -> None:
    def round_trip(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        flat, time = pack_bits(x, bits, "flat"), pack_bits(x, bits, "time")
        return (
            unpack_bits(flat, x.shape, x.dtype, bits, "flat"),
            unpack_bits(time, x.shape, x.dtype, bits, "time"),
        )

    x, _ = grid_tensor([5, 3, 7], torch.float32, bits)
    graph = make_fx(round_trip, decomposition_table=DECOMPOSITIONS, tracing_mode=mode)(x)
    targets = {str(node.target) for node in graph.graph.nodes}
    assert not any("snnfx" in target for target in targets)
    other, _ = grid_tensor([5, 3, 7] if mode == "real" else [5, 4, 9], torch.float32, bits)
    for values in graph(other):
        assert same_bits(values, other)


def test_inductor_fuses_the_time_layout_into_vector_loops() -> None:
    def pack(x: torch.Tensor) -> torch.Tensor:
        return DECOMPOSITIONS[PACK](torch.sin(x).ge(0.5).to(torch.float32), 1, "time")

    from torch._inductor.utils import run_and_get_code

    x = torch.randn(8, 2, 4, 8, 8)
    packed, sources = run_and_get_code(torch.compile(pack), x)
    assert same_bits(packed, pack_bits_reference(torch.sin(x).ge(0.5).float(), 1, "time"))
    assert sources[0].count("= async_compile.cpp") == 1
    assert "Vectorized<uint8_t>" in sources[0]
    assert "aten.cat" not in sources[0].split("def call")[1]


def test_errors_reach_the_caller() -> None:
    with pytest.raises(PackError, match="bits=3"):
        pack_bits(torch.zeros(8), 3)
    with pytest.raises(PackError, match="packs to"):
        unpack_bits(torch.zeros(1, dtype=torch.uint8), [9], torch.float32, 1)


def test_importing_the_operators_needs_no_triton() -> None:
    program = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch, importlib.util as u; u.find_spec = lambda name: None\n"
        "from snnfx.kernels.ops import pack_bits\n"
        "assert pack_bits(torch.ones(3), 1).tolist() == [7]\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_reference_unpacks_what_the_operator_packed() -> None:
    x, _ = grid_tensor([9, 11], torch.float16, 2, 1.0, -1)
    packed = pack_bits(x, 2, "time", 1.0, -1)
    assert same_bits(unpack_bits_reference(packed, [9, 11], x.dtype, 2, "time", 1.0, -1), x)
