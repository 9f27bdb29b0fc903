"""Which modules are spiking neurons: ours, and those of other frameworks, which are not imported.

A class of another framework is known by its name and the package that defines it.
"""

from __future__ import annotations

from torch import nn

from snnfx.neurons import IFNode, LIFNode, ParametricLIFNode

_OF_FRAMEWORKS: dict[str, frozenset[str]] = {
    "spikingjelly": frozenset(("BaseNode", "SimpleBaseNode")),
    "snntorch": frozenset(("SpikingNeuron",)),
    "norse": frozenset(("SNN", "SNNCell", "SNNRecurrent", "SNNRecurrentCell")),
    "sinabs": frozenset(("StatefulLayer",)),
}
"""The base classes of all neurons, by package."""

_IF_OR_LIF: dict[str, frozenset[str]] = {
    "spikingjelly": frozenset(("IFNode", "LIFNode", "SimpleIFNode", "SimpleLIFNode")),
    "snntorch": frozenset(("Leaky", "Lapicque")),
    "norse": frozenset(("IAFCell", "LIF", "LIFCell", "LIFBoxCell")),
    "sinabs": frozenset(("IAF", "LIF")),
}
"""Integrate-and-fire neurons, without a leak or with a constant one; subclasses are, too."""


def is_neuron(module: nn.Module) -> bool:
    """Whether a module is a spiking neuron, or a population of them."""
    return is_neuron_type(type(module))


def is_neuron_type(cls: type) -> bool:
    """The same of a class."""
    ours = issubclass(cls, (IFNode, LIFNode, ParametricLIFNode))
    return ours or _descends(cls, _OF_FRAMEWORKS)


def is_if_or_lif(module: nn.Module) -> bool:
    """Whether a module is an integrate-and-fire neuron, leaky with a constant rate or not."""
    ours = isinstance(module, (IFNode, LIFNode)) and not isinstance(module, ParametricLIFNode)
    return ours or _descends(type(module), _IF_OR_LIF)


def _descends(cls: type, names: dict[str, frozenset[str]]) -> bool:
    return any(
        base.__name__ in names.get(base.__module__.partition(".")[0], frozenset())
        for base in cls.__mro__
    )
