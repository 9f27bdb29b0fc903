"""The table of a report: which rows, what they add up to, and how counts are written."""

from __future__ import annotations

import io
import itertools
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
import sympy
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from snnfx.op_counter.report import CountReport
from snnfx.op_counter.report_tree import module_rows
from snnfx.op_counter.report_values import format_count, format_rate, sum_of

from tests.op_counter.report_cases import BODY, CONV, LIF, NET, RATE, small_report, symbolic_report

R, S, T = sympy.symbols("r s T", positive=True)
SCALES = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}


def text_of(report: CountReport, **options: Any) -> str:
    file = io.StringIO()
    Console(file=file, width=160).print(report.table(**options))
    return file.getvalue()


def labels_of(text: str) -> list[str]:
    """The first column below the rule."""
    rows = text.partition("───\n")[2] or text.partition("─ \n")[2]
    lines = itertools.takewhile(str.strip, rows.splitlines())
    return [line.split()[0] for line in lines]


def test_rows_are_the_modules_each_below_the_one_that_holds_it() -> None:
    rows = module_rows(small_report())
    assert [(row.scope, row.label, row.depth) for row in rows] == [
        ("Global", "Global", 0),
        (NET, "Net", 1),
        (BODY, "body", 2),
        (CONV, "0", 3),
        (LIF, "1", 3),
        ("Net.heads.0", "heads.0", 2),
    ]


def test_a_row_holds_the_sums_of_its_module_by_stage() -> None:
    report = small_report()
    for row in module_rows(report):
        for stage, counts in row.counts.items():
            assert counts == {
                q: report.total(q, stage, row.scope)
                for q in ("flops", "bytes", "mac", "ac", "synops")
            }
    everything, _, body, *_ = module_rows(report)
    assert everything.calls == {"forward": 11, "backward": 1}
    assert body.calls == {"forward": 9, "backward": 1}
    assert body.counts["forward"]["flops"] == 4800


def test_rates_are_means_over_the_spikes_of_all_modules_inside() -> None:
    rates = {row.scope: row.rate for row in module_rows(small_report())}
    assert rates["Global"] == rates[NET] == Fraction(30 + 30, 400)
    assert rates[BODY] == rates[LIF] == Fraction(3, 10)
    assert rates[CONV] is None
    assert rates["Net.heads.0"] == Fraction(1, 10)


def test_a_depth_leaves_out_what_lies_deeper() -> None:
    assert [row.scope for row in module_rows(small_report(), 1)] == ["Global", NET]
    labels = [labels_of(text_of(small_report(), depth=depth)) for depth in (2, None)]
    assert labels == [
        ["Global", "Net", "body", "heads.0"],
        ["Global", "Net", "body", "0", "1", "heads.0"],
    ]


def test_the_table_shows_both_stages_in_readable_units() -> None:
    text = text_of(small_report(), title="a title")
    assert text.startswith("a title")
    line = next(line for line in text.splitlines() if "heads.0 " in line)
    assert [c.strip() for c in line.split("  ") if c.strip()] == [
        "heads.0", "1 / 0", "1.23 M / 0", "2.00 KiB / 0 B", "0 / 0", "30 / 0", "30 / 0", "10%"
    ]  # fmt: skip
    assert "forward / backward" in text
    assert "without a rule for SynOps: aten.ge.Scalar (4)" in text
    assert "without a rule for FLOPs" not in text
    assert "heads.0 was binary in the run" in text


def test_one_stage_is_shown_alone() -> None:
    report = small_report()
    forward = replace(report, operators=report.operators[:-1])
    assert "/" not in text_of(forward).replace("forward / backward", "x")
    assert "backward" not in text_of(forward)


def test_expressions_stay_readable_in_the_table() -> None:
    text = text_of(symbolic_report())
    assert "100*r_body.1" in text
    assert "100*r_body.1 + 7" in text
    assert str(RATE) in next(line for line in text.splitlines() if line.strip().startswith("1 "))


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.00 k"),
        (999_499, "999 k"),
        (999_999, "1.00 M"),
        (12_340_000, "12.3 M"),
        (10**30, "1000000000000 E"),
        (Fraction(3, 2), "1.50"),
        (Fraction(6, 2), "3"),
        (sympy.Rational(3, 2), "1.50"),
        (sympy.Integer(2500), "2.50 k"),
        (2_000_000 * R, "2.00 M*r"),
        (3000 * R * S + 1, "3.00 k*r*s + 1"),
        (R**2 + T, "1*r**2 + 1*T"),
    ],
)
def test_counts_are_written_with_three_digits(count: Any, text: str) -> None:
    found = format_count(count)
    assert found == text or sorted(found.split(" + ")) == sorted(text.split(" + "))


def test_long_expressions_in_rates_are_bounded_and_others_named() -> None:
    long = 1_000_001 * R + 2_000_002 * S + 3_000_003 * R * S
    assert format_count(long, [R, S]) == "<= 6.00 M"
    assert format_count(long - 3_000_003, [R, S]) == "f(r, s)"
    assert format_count(long + 5_000_000 * T, [R, S]) == "f(T, r, s)"
    many = sympy.Add(*(1_000_000 * x for x in sympy.symbols("a0:9")))
    assert format_count(many) == "f(9 symbols)"


def test_bytes_have_their_own_units() -> None:
    found = [format_count(n, in_bytes=True) for n in (1023, 1024, 1024**2 - 1, 3 * 1024**3)]
    assert found == ["1023 B", "1.00 KiB", "1.00 MiB", "3.00 GiB"]


@given(st.integers(0, 10**20))
def test_a_written_count_is_close_to_the_count(count: int) -> None:
    number, _, unit = format_count(count).partition(" ")
    assert float(number) * SCALES[unit] == pytest.approx(count, rel=5.1e-3)
    assert len(number) <= 4 or unit == "E"


def test_rates_are_per_cent_or_symbols() -> None:
    found = [format_rate(rate) for rate in (None, Fraction(1, 8), 1, R, sympy.Rational(1, 3))]
    assert found == ["", "12.5%", "100%", "r", "33.3%"]


@given(st.lists(st.one_of(st.integers(0, 99), st.sampled_from([R, 2 * S, sympy.Integer(3)]))))
def test_sums_are_those_of_plain_addition(counts: list[Any]) -> None:
    assert sympy.expand(sum_of(counts) - sum(counts)) == 0
