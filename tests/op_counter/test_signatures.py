"""Signatures are the documented ones: names, order, kinds and defaults of all parameters."""

from __future__ import annotations

import inspect

import pytest

from snnfx import op_counter

from tests.signatures import FACTORY, Parameter, describe, documented_parameters, same
from tests.sources import ROOT

DOCUMENTED = (ROOT / "tests/reference/op_counter_signatures.txt").read_text().splitlines()
ALIASES = {
    "SpikeSimEventEnergyProfiler": "SpikeSimEnergyProfiler",
    "SpikeSimEventEnergyReport": "SpikeSimEnergyReport",
}
OURS = {"count", "compute_energy_of", "CountReport"}
WITHOUT_PARAMETERS = {"ActiveModuleTracker", "BaseCounter"}


def our_parameters(name: str) -> list[Parameter]:
    """The parameters of our class, function or method, without a method's `self`."""
    first, _, method = name.partition(".")
    found = getattr(op_counter, first)
    if not method:
        return describe(inspect.signature(found))
    return describe(inspect.signature(getattr(found, method)))[1:]


def with_none_for_empty(parameter: Parameter) -> Parameter:
    """A default that all calls would share is None with us."""
    return parameter._replace(default=None) if parameter.default in ({}, []) else parameter


def as_documented(ours: Parameter, documented: list[Parameter]) -> Parameter:
    """A field that starts as an empty container is documented as None, which becomes one."""
    empty = ours.default == FACTORY and Parameter(ours.name, ours.kind, None) in documented
    return ours._replace(default=None) if empty else ours


@pytest.mark.parametrize("line", DOCUMENTED, ids=lambda line: line.partition("(")[0])
def test_a_signature_is_the_documented_one(line: str) -> None:
    name, parameters = documented_parameters(line)
    documented = [with_none_for_empty(parameter) for parameter in parameters]
    # What we have beyond the documents comes last, and has a default.
    ours = [as_documented(p, documented) for p in our_parameters(name)]
    assert ours[: len(documented)] == documented
    assert same(ours[: len(documented)], documented)
    assert all(more.default is not inspect.Parameter.empty for more in ours[len(documented) :])


def test_every_documented_name_is_public() -> None:
    names = {documented_parameters(line)[0].partition(".")[0] for line in DOCUMENTED}
    assert names | WITHOUT_PARAMETERS | ALIASES.keys() | OURS == set(op_counter.__all__)


@pytest.mark.parametrize("alias", ALIASES)
def test_an_alias_is_the_same_class(alias: str) -> None:
    assert getattr(op_counter, alias) is getattr(op_counter, ALIASES[alias])
