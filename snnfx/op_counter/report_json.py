"""A `CountReport` as JSON and as CSV, and back from JSON.

A known count is a JSON number, or the text of a fraction such as ``"3/7"``. An expression in
symbols is a list of terms, a coefficient and the powers of symbols each:
``[["3/2", {"r": 1}], ["4", {}]]``; reading it evaluates no text.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import sympy
import torch

from snnfx.errors import OptionError
from snnfx.op_counter.report import (
    QUANTITIES,
    CountReport,
    OperatorCount,
    SpikeTensor,
    frozen,
)
from snnfx.op_counter.report_tree import module_rows
from snnfx.op_counter.report_values import is_number
from snnfx.op_counter.spikes import Count
from snnfx.op_counter.tracker import GLOBAL

FORMAT_VERSION = 1
CSV_COLUMNS = ("module", "stage", "operator", "calls", *QUANTITIES)


def report_json(report: CountReport) -> str:
    """Everything in a report, and its totals by stage."""
    everything = module_rows(report, depth=0)[0]
    totals = {
        stage: {quantity: encoded(count) for quantity, count in counts.items()}
        for stage, counts in everything.counts.items()
    }
    document = {
        "version": FORMAT_VERSION,
        "totals": totals,
        "symbols": _symbols(report),
        "operators": [_operator(entry) for entry in report.operators],
        "spike_tensors": [
            {**vars(tensor), "rate": encoded(tensor.rate)} for tensor in report.spike_tensors
        ],
        "unsupported": {q: dict(missed) for q, missed in report.unsupported.items()},
        "warnings": list(report.warnings),
    }
    return json.dumps(document, indent=2)


def report_from_json(text: str) -> CountReport:
    """The report that `report_json` wrote.

    An operator that this PyTorch does not have stays the text of its name.

    Raises:
        OptionError: the text is no such report.
    """
    try:
        document = json.loads(text)
        version = document["version"]
        if version != FORMAT_VERSION:
            raise OptionError(
                f"a report of version {version} cannot be read: this is version {FORMAT_VERSION}; "
                "count again"
            )
        return _report(document)
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, OptionError):
            raise
        raise OptionError(
            f"this is no report of counts ({type(error).__name__}: {error}): give the text that "
            "CountReport.to_json returned"
        ) from error


def report_csv(report: CountReport) -> str:
    """A line for each module, stage and operator, below a line of names.

    What an operator counts stands in the innermost module that was running; a quantity without a
    rule for it is empty.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for entry in report.operators:
        module = entry.path[-1] if entry.path else GLOBAL
        counts = [str(entry.counts.get(quantity, "")) for quantity in QUANTITIES]
        writer.writerow([module, entry.stage, str(entry.operator), entry.calls, *counts])
    return file.getvalue()


def encoded(count: Count) -> Any:
    """A count as JSON has it."""
    if isinstance(count, sympy.Basic) and not is_number(count):
        polynomial = sympy.Poly(count)
        return [
            [
                str(coefficient),
                {str(s): p for s, p in zip(polynomial.gens, powers, strict=True) if p},
            ]
            for powers, coefficient in polynomial.terms()
        ]
    exact = Fraction(str(count)) if isinstance(count, sympy.Basic) else Fraction(count)
    return exact.numerator if exact.denominator == 1 else str(exact)


def _decoded(value: Any, symbols: Mapping[str, sympy.Symbol]) -> Count:
    if not isinstance(value, list):
        return _number(value)
    terms: list[Any] = []
    for coefficient, powers in value:
        exact = Fraction(coefficient)
        factors = [symbols[name] ** power for name, power in powers.items()]
        terms.append(sympy.Mul(sympy.Rational(exact.numerator, exact.denominator), *factors))
    return sympy.Add(*terms)


def _number(value: Any) -> Count:
    exact = Fraction(value)
    return exact.numerator if exact.denominator == 1 else exact


def _symbols(report: CountReport) -> dict[str, dict[str, bool]]:
    """What is assumed of each symbol: two symbols are the same if name and assumptions are."""
    counts = [count for entry in report.operators for count in entry.counts.values()]
    counts += [tensor.rate for tensor in report.spike_tensors]
    found: set[Any] = set()
    for count in counts:
        found |= count.free_symbols if isinstance(count, sympy.Basic) else set()
    return {s.name: dict(s.assumptions0) for s in sorted(found, key=lambda s: s.name)}


def _operator(entry: OperatorCount) -> dict[str, Any]:
    return {
        "path": list(entry.path),
        "stage": entry.stage,
        "operator": str(entry.operator),
        "calls": entry.calls,
        "counts": {quantity: encoded(count) for quantity, count in entry.counts.items()},
    }


def _report(document: Mapping[str, Any]) -> CountReport:
    symbols = {n: sympy.Symbol(n, **known) for n, known in document["symbols"].items()}
    operators = [
        OperatorCount(
            tuple(entry["path"]),
            entry["stage"],
            _operator_named(entry["operator"]),
            entry["calls"],
            frozen({q: _decoded(value, symbols) for q, value in entry["counts"].items()}),
        )
        for entry in document["operators"]
    ]
    tensors = [
        SpikeTensor(**{**entry, "rate": _decoded(entry["rate"], symbols)})
        for entry in document["spike_tensors"]
    ]
    return CountReport(
        tuple(operators),
        tuple(tensors),
        {quantity: frozen(missed) for quantity, missed in document["unsupported"].items()},
        tuple(document["warnings"]),
    )


def _operator_named(name: str) -> Any:
    """The operator of a name such as ``"aten.add.Tensor"``."""
    namespace, _, rest = name.partition(".")
    packet, _, overload = rest.rpartition(".")
    try:
        return getattr(getattr(getattr(torch.ops, namespace), packet), overload)
    except (AttributeError, RuntimeError):
        return name
