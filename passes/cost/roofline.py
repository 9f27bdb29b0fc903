"""How long an operator takes, roughly: a roofline over a small table of devices.

Times serve to compare plans for one device with each other. They are not predictions of a clock.
Source of the model: Williams, Waterman and Patterson, "Roofline: an insightful visual performance
model for multicore architectures", CACM 2009.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Graph, Node

from snnfx.passes.cost.flops import node_flops
from snnfx.passes.fxgraph import is_getitem, is_view, node_bytes, node_value


@dataclass(frozen=True)
class Device:
    """Attainable speeds of a device.

    Attributes:
        flops_per_second: of float32 matrix work, as large convolutions attain it.
        bytes_per_second: of main memory.
        launch_seconds: that any operator takes at least.
    """

    flops_per_second: float
    bytes_per_second: float
    launch_seconds: float


DEVICES: dict[str, Device] = {
    "cpu": Device(1e11, 1.5e10, 5e-6),
    "cuda": Device(1.5e13, 1.2e12, 5e-6),
    "Tesla T4": Device(6.5e12, 2.6e11, 5e-6),
    "Tesla V100": Device(1.25e13, 7.2e11, 5e-6),
    "NVIDIA GeForce RTX 3090": Device(2.8e13, 7.5e11, 5e-6),
    "NVIDIA GeForce RTX 4090": Device(6.6e13, 8.1e11, 5e-6),
    "NVIDIA A100": Device(1.6e13, 1.5e12, 5e-6),
    "NVIDIA H100": Device(4.5e13, 2.6e12, 5e-6),
    "NVIDIA H200": Device(4.5e13, 3.8e12, 5e-6),
}
"""By device type, or by how the name of a GPU begins. Sources: about 80% of the figures of
NVIDIA's data sheets and, for GeForce, its GA102 and Ada architecture whitepapers (float32 without
tensor cores: T4 8.1, V100 SXM2 15.7, RTX 3090 35.6, RTX 4090 82.6, A100 19.5 TFLOP/s), and of two
cores of a server CPU."""


def device_of(graph: Graph) -> Device:
    """The device that the graph's tensors lie on."""
    values = (node_value(node) for node in graph.nodes)
    found = next((v.device for v in values if isinstance(v, Tensor)), torch.device("cpu"))
    if found.type == "cuda" and torch.cuda.is_available():
        name = torch.cuda.get_device_name(found)
        near = [key for key in DEVICES if name.startswith(key)]
        return DEVICES[near[0]] if near else DEVICES["cuda"]
    return DEVICES.get(found.type, DEVICES["cpu"])


def node_seconds(node: Node, device: Device) -> float:
    """Seconds of the operator or compiled region that the node calls; 0 for views and getitems."""
    if node.op not in ("call_function", "call_module") or is_getitem(node) or is_view(node):
        return 0.0
    moved = node_bytes(node) + sum(node_bytes(source) for source in node.all_input_nodes)
    work = node_flops(node) / device.flops_per_second
    return device.launch_seconds + max(work, moved / device.bytes_per_second)


def graph_seconds(graph: Graph, device: Device) -> float:
    """Seconds of all nodes of a graph, one after the other."""
    return sum(node_seconds(node, device) for node in graph.nodes)
