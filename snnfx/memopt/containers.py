"""Put containers into a model, and take them out again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from snnfx.checkpointing import GCContainer, TCGCContainer
from snnfx.compressors import (
    BaseSpikeCompressor,
    BitSpikeCompressor,
    BooleanSpikeCompressor,
    GridSpikeCompressor,
    Uint8SpikeCompressor,
)
from snnfx.memopt.selection import CompressorKind


@dataclass(frozen=True)
class Wrap:
    """A module that is to be in a container.

    Attributes:
        path: of the module in the model as it was given.
        compressor: of its first input.
        kind: who chose the compressor.
        chunks: along time; 1: a plain `GCContainer`.
        is_cut_out: whether it may lie inside of another container, as a piece cut out of that.
    """

    path: str
    compressor: BaseSpikeCompressor
    kind: CompressorKind
    chunks: int = 1
    is_cut_out: bool = False

    @property
    def packed_bits(self) -> int | None:
        """Bits an element in which the input is kept; None if it counts as kept whole."""
        if isinstance(self.compressor, BitSpikeCompressor):
            return 1
        if isinstance(self.compressor, GridSpikeCompressor):
            return self.compressor.bits
        bytewise = isinstance(self.compressor, BooleanSpikeCompressor | Uint8SpikeCompressor)
        return 8 if bytewise else None

    def container(self, module: nn.Module) -> GCContainer:
        """A container around `module`."""
        if self.chunks == 1:
            return GCContainer.wrapping(module, self.compressor, is_cut_out=self.is_cut_out)
        return TCGCContainer.wrapping(
            module,
            self.compressor,
            is_cut_out=self.is_cut_out,
            n_chunk=self.chunks,
            n_seq_inputs=getattr(module, "n_seq_inputs", 1),
            n_outputs=getattr(module, "n_outputs", 1),
        )


Wraps = Mapping[str, Wrap]
"""By the path of the module; inside of another are only pieces that are cut out of it."""


class Installed:
    """A model with some of its modules in containers, which can be exchanged for others.

    Args:
        net: changed in place.
    """

    def __init__(self, net: nn.Module) -> None:
        self._net = net
        self._originals: dict[GCContainer, nn.Module] = {}

    def install(self, wraps: Wraps) -> None:
        """Let just these modules be in containers; those of earlier calls are taken out."""
        self.remove()
        modules = {path: self._net.get_submodule(path) for path in wraps}
        for path, wrap in wraps.items():
            container = wrap.container(modules[path])
            container.training = modules[path].training
            _replace(self._net, modules[path], container)
            self._originals[container] = modules[path]

    def remove(self) -> None:
        """Take all containers out."""
        for container, module in self._originals.items():
            _replace(self._net, container, module)
        self._originals.clear()


def _replace(net: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put `new` wherever `old` is registered in the model, under all its names."""
    parents = [module for module in net.modules() if module is not new]
    for parent in parents:
        for name, child in parent._modules.items():
            if child is old:
                setattr(parent, name, new)
