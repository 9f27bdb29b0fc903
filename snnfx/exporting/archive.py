"""`snnfx.export` and `snnfx.load`: rewritten models as files.

Format 1 is a zip archive:

- ``signature.json``: ``format`` (``"snnfx"``), ``version``, the versions of torch and snnfx that
  wrote it, ``lowering``, ``tensors`` (dtype, shape and
  order of dimensions in memory of each), ``parameters`` and ``buffers`` by
  name (names that share a tensor have its number), and ``steps``: by mode, ``"train"`` or
  ``"eval"``, the folder of the step and its `snnfx.exporting.signature.StepSignature`;
- ``<mode>/forward.json``, ``<mode>/backward.json``: graphs as `snnfx.exporting.graph_data` says,
  and ``<mode>/plan.json``, a `MemoryPlan`; the last two only with a backward;
- ``tensors/<number>``: the elements in C order, little-endian.

Nothing in it is pickled, and nothing of it is run as Python. What it holds is checked against lists
of what is allowed when it is read. An archive of a later version is refused.
"""

from __future__ import annotations

import ctypes
import json
import math
import sys
import zipfile
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from snnfx.config import Options
from snnfx.errors import ExportError, PlanError
from snnfx.exporting.graph_data import data_to_graph, graph_to_data
from snnfx.exporting.module import EVAL, TRAIN, RewrittenModule
from snnfx.exporting.rewriting import rewrite
from snnfx.exporting.signature import DTYPES, StepSignature, dense_order, laid_out, read_order
from snnfx.exporting.sizes import DynamicShapes
from snnfx.exporting.step import Step
from snnfx.exporting.values import with_regions
from snnfx.passes.plan.memory_plan import MemoryPlan

FORMAT, VERSION = "snnfx", 1
_SIGNATURE = "signature.json"

Path = str | PathLike[str]


def export(
    model: nn.Module,
    example_inputs: Tensor | Sequence[Any],
    path: Path,
    *,
    dynamic_shapes: DynamicShapes | None = None,
    train: bool = True,
    lowering: str = "eager",
    **options: Any,
) -> None:
    """Write the rewritten step of a model, its parameters and its buffers to a file.

    `load` makes a module of it, in any process, without the code of the model.

    Args:
        model: see `snnfx.rewrite`, also for the other arguments.
        example_inputs: see there.
        path: of the file, which is replaced; the custom is ``.snnfx``.
        dynamic_shapes: see there.
        train: see there.
        lowering: see there; `load` may be told another one.
        options: see there.

    Raises:
        ExportError: the model cannot be rewritten, or holds what a file cannot hold.
        OptionError: an unknown option or value.
        OSError: the file cannot be written.
    """
    rewritten = rewrite(
        model, example_inputs, dynamic_shapes=dynamic_shapes, train=train, lowering=lowering,
        **options,
    )  # fmt: skip
    members, tensors = _packed(rewritten)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            text = data if isinstance(data, str) else json.dumps(data, separators=(",", ":"))
            archive.writestr(name, text)
        for index, tensor in enumerate(tensors):
            member = zipfile.ZipInfo(f"tensors/{index}")
            archive.writestr(member, _bytes(tensor), zipfile.ZIP_STORED)


def load(path: Path, *, lowering: str | None = None) -> RewrittenModule:
    """The module of a file that `export` wrote; nothing of the file is run as Python.

    Args:
        path: of the file.
        lowering: ``"eager"`` or ``"inductor"``; None takes that of the export.

    Raises:
        ExportError: the file is not one of `export`, of a later version, or damaged; or it holds
            what is not allowed in one.
        OptionError: an unknown lowering.
        OSError: the file cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _loaded(archive, str(path), lowering)
    except (zipfile.BadZipFile, json.JSONDecodeError, UnicodeDecodeError, PlanError) as error:
        raise ExportError(f"'{path}' is not a file of snnfx.export: {error}") from error


def _packed(module: RewrittenModule) -> tuple[dict[str, Any], list[Tensor]]:
    """The members of an archive as data, and its tensors."""
    tensors: list[Tensor] = []
    numbers: dict[int, int] = {}

    def number(tensor: Tensor) -> int:
        if id(tensor) not in numbers:
            numbers[id(tensor)] = len(tensors)
            tensors.append(tensor)
        return numbers[id(tensor)]

    members: dict[str, Any] = {}
    steps: dict[str, Any] = {}
    for mode, step in module.steps.items():
        halves = {"forward": step.forward, "backward": step.backward}
        constants: dict[str, dict[str, int]] = {}
        for name, half in halves.items():
            if half is not None:
                members[f"{mode}/{name}.json"] = graph_to_data(half)
                reads = half.graph.find_nodes(op="get_attr")
                constants[name] = {str(n.target): number(getattr(half, str(n.target)))
                                   for n in reads}  # fmt: skip
        if step.plan is not None:
            members[f"{mode}/plan.json"] = step.plan.to_json()
        steps[mode] = {"signature": step.signature.to_data(), "constants": constants}
    parameters = {
        name: {"tensor": number(tensor), "requires_grad": tensor.requires_grad}
        for name, tensor in module.named_parameters(remove_duplicate=False)
    }
    kept = set(module.state_dict())
    buffers = {
        name: {"tensor": number(tensor), "persistent": name in kept}
        for name, tensor in module.named_buffers(remove_duplicate=False)
    }
    signature = {
        "format": FORMAT,
        "version": VERSION,
        "torch": torch.__version__,
        "lowering": next(iter(module.steps.values())).options.lowering,
        "tensors": [
            {
                "dtype": str(tensor.dtype).removeprefix("torch."),
                "shape": list(tensor.shape),
                "order": dense_order(tensor),
            }
            for tensor in tensors
        ],
        "parameters": parameters,
        "buffers": buffers,
        "steps": steps,
    }
    return {_SIGNATURE: signature, **members}, tensors


def _loaded(archive: zipfile.ZipFile, path: str, lowering: str | None) -> RewrittenModule:
    signature = _read_signature(archive, path)
    options = Options.parse({"lowering": signature["lowering"] if lowering is None else lowering})
    tensors = [
        _tensor(archive, index, data) for index, data in enumerate(_get(signature, "tensors", list))
    ]
    steps = {
        mode: _read_step(archive, mode, data, tensors, options)
        for mode, data in _get(signature, "steps", dict).items()
    }
    if not steps or set(steps) - {TRAIN, EVAL}:
        raise ExportError(f"'{path}' has the steps {list(steps)}; allowed: {TRAIN}, {EVAL}")
    module = RewrittenModule(steps, _read_state(signature, tensors))
    for step in steps.values():
        module.check_names(step.signature)
    return module


def _read_signature(archive: zipfile.ZipFile, path: str) -> dict[str, Any]:
    signature = _json(archive, _SIGNATURE)
    if not isinstance(signature, dict) or signature.get("format") != FORMAT:
        raise ExportError(f"'{path}' is not a file of snnfx.export: its signature says otherwise")
    if signature.get("version") != VERSION:
        raise ExportError(
            f"'{path}' has version {signature.get('version')!r} of the format; this snnfx reads "
            f"version {VERSION}. Export the model again, or use the snnfx that wrote it"
        )
    return signature


def _read_step(
    archive: zipfile.ZipFile, mode: str, data: Any, tensors: Sequence[Tensor], options: Options
) -> Step:
    signature = StepSignature.from_data(_get(data, "signature", dict))
    constants = {
        half: {name: _pick(tensors, index) for name, index in _get(named, None, dict).items()}
        for half, named in _get(data, "constants", dict).items()
    }
    forward = data_to_graph(_json(archive, f"{mode}/forward.json"), constants.get("forward", {}))
    backward = plan = None
    if signature.tangents:
        backward = data_to_graph(
            _json(archive, f"{mode}/backward.json"), constants.get("backward", {})
        )
        plan = MemoryPlan.from_json(_text(archive, f"{mode}/plan.json"))
    step = Step(signature, forward, backward, plan, options)
    step.check()
    return with_regions(step) if options.lowering == "inductor" else step


def _read_state(
    signature: Mapping[str, Any], tensors: Sequence[Tensor]
) -> dict[str, tuple[Tensor, bool]]:
    made: dict[int, nn.Parameter] = {}
    state: dict[str, tuple[Tensor, bool]] = {}
    for name, data in _get(signature, "parameters", dict).items():
        tensor = _pick(tensors, data.get("tensor"))
        requires_grad = _get(data, "requires_grad", bool)
        if requires_grad and not (tensor.is_floating_point() or tensor.is_complex()):
            raise ExportError(f"parameter '{name}' is {tensor.dtype}, which has no gradient")
        parameter = made.setdefault(id(tensor), nn.Parameter(tensor, requires_grad))
        state[name] = (parameter, True)
    for name, data in _get(signature, "buffers", dict).items():
        state[name] = (_pick(tensors, data.get("tensor")), _get(data, "persistent", bool))
    if any(not part for name in state for part in name.split(".")):
        raise ExportError(f"the names of parameters and buffers are no paths: {list(state)[:8]}")
    return state


def _bytes(tensor: Tensor) -> bytes:
    _check_byte_order()
    dense = tensor.detach().cpu().contiguous()
    return ctypes.string_at(dense.data_ptr(), dense.nbytes) if dense.nbytes else b""


def _tensor(archive: zipfile.ZipFile, index: int, data: Any) -> Tensor:
    _check_byte_order()
    dtype, shape = DTYPES.get(_get(data, "dtype", str)), _get(data, "shape", list)
    if dtype is None or not all(type(size) is int and size >= 0 for size in shape):
        raise ExportError(f"tensor {index} of the file has an unknown dtype or shape: {data}")
    name, count = f"tensors/{index}", math.prod(shape)
    if name not in archive.namelist() or archive.getinfo(name).file_size != count * dtype.itemsize:
        raise ExportError(f"tensor {index} of the file is missing or not of the size of {data}")
    if not count:
        return torch.empty(shape, dtype=dtype)
    read = torch.frombuffer(bytearray(archive.read(name)), dtype=dtype).reshape(shape)
    return laid_out(read, read_order(data.get("order"), len(shape)))


def _check_byte_order() -> None:
    if sys.byteorder != "little":
        raise ExportError("exported files are little-endian, and this machine is not")


def _json(archive: zipfile.ZipFile, name: str) -> Any:
    return json.loads(_text(archive, name))


def _text(archive: zipfile.ZipFile, name: str) -> str:
    if name not in archive.namelist():
        raise ExportError(f"'{archive.filename}' has no {name}, so it is not of snnfx.export")
    return archive.read(name).decode()


def _get(data: Any, name: str | None, kind: type[Any]) -> Any:
    value = data if name is None else data.get(name) if isinstance(data, dict) else None
    if type(value) is not kind:
        raise ExportError(f"the file has no {kind.__name__} for '{name}', but {str(value)[:80]}")
    return value


def _pick(tensors: Sequence[Tensor], index: Any) -> Tensor:
    if type(index) is not int or not 0 <= index < len(tensors):
        raise ExportError(f"the file has {len(tensors)} tensors, but none of the number {index!r}")
    return tensors[index]
