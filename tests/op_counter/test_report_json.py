"""Reports as JSON and CSV: all is there, exactly, and what is read is what was written."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import pytest
import sympy
from hypothesis import given
from hypothesis import strategies as st

from snnfx.errors import OptionError
from snnfx.op_counter.report import CountReport, frozen

from tests.op_counter.report_cases import RATE, aten, entry, small_report, symbolic_report


@pytest.mark.parametrize("make", [small_report, symbolic_report])
def test_what_is_read_is_what_was_written(make: Callable[[], CountReport]) -> None:
    report = make()
    again = CountReport.from_json(report.to_json())
    assert again == report
    assert again.operators[0].operator is aten.convolution.default
    assert again.to_json() == report.to_json()


def test_json_holds_exact_numbers_and_totals() -> None:
    document = json.loads(symbolic_report().to_json())
    assert document["version"] == 1
    assert document["totals"]["forward"]["flops"] == 4000 + 800 + 1_234_567 + 50
    assert document["totals"]["backward"]["mac"] == 4000
    assert sorted(document["totals"]["forward"]["synops"]) == [
        ["100", {"r_body.1": 1}],
        ["7", {}],
    ]
    first = document["operators"][0]
    assert first == {
        "path": ["Net", "Net.body", "Net.body.0"],
        "stage": "forward",
        "operator": "aten.convolution.default",
        "calls": 1,
        "counts": {"flops": 4000, "bytes": 800, "mac": 2000, "ac": 0, "synops": 0},
    }
    assert json.loads(small_report().to_json())["spike_tensors"][0]["rate"] == "3/10"


@given(st.lists(st.tuples(st.fractions(), st.integers(0, 3), st.integers(0, 2)), max_size=4))
def test_any_polynomial_comes_back(terms: list[tuple[Fraction, int, int]]) -> None:
    other = sympy.Symbol("T", integer=True, positive=True)
    count = sympy.Add(
        *(sympy.Rational(c.numerator, c.denominator) * RATE**p * other**q for c, p, q in terms)
    )
    report = CountReport((entry((), aten.mm.default, 1, count),), (), {}, ())
    again = CountReport.from_json(report.to_json()).total("flops")
    assert sympy.expand(sympy.sympify(again) - count) == 0


def test_an_operator_that_is_not_there_keeps_its_name() -> None:
    report = small_report()
    unknown = replace(report, operators=(replace(report.operators[0], operator="mine.add.x"),))
    assert CountReport.from_json(unknown.to_json()).operators[0].operator == "mine.add.x"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no json", "this is no report of counts"),
        ("[]", "this is no report of counts"),
        ('{"version": 1}', "KeyError: 'symbols'"),
        ('{"version": 99}', "version 99 cannot be read"),
    ],
)
def test_what_is_no_report_is_refused(text: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        CountReport.from_json(text)


def test_csv_has_a_line_for_each_module_stage_and_operator() -> None:
    rows = list(csv.DictReader(io.StringIO(small_report().to_csv())))
    assert [(r["module"], r["stage"], r["operator"]) for r in rows] == [
        ("Net.body.0", "forward", "aten.convolution.default"),
        ("Net.body.1", "forward", "aten.mul.Tensor"),
        ("Net.body.1", "forward", "aten.ge.Scalar"),
        ("Net.heads.0", "forward", "aten.mm.default"),
        ("Global", "forward", "aten.mean.dim"),
        ("Net.body.0", "backward", "aten.convolution_backward.default"),
    ]
    assert sum(int(row["flops"]) for row in rows) == small_report().total("flops")
    assert rows[2]["synops"] == ""
    assert list(csv.DictReader(io.StringIO(symbolic_report().to_csv())))[3]["ac"] == "100*r_body.1"


def test_an_empty_report_is_written_too() -> None:
    empty = CountReport((), (), {"flops": frozen({})}, ())
    assert CountReport.from_json(empty.to_json()) == empty
    assert len(empty.to_csv().splitlines()) == 1
