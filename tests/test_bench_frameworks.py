"""The benchmark of the frameworks measures both ways of training, and says what does not hold."""

from __future__ import annotations

from pathlib import Path

import pytest

import bench_frameworks

from tests.backend.harness import ignore_dynamo_warnings

pytestmark = ignore_dynamo_warnings


def test_a_network_is_measured_plain_and_compiled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "rows.json"
    command = ["--models", "norse", "--size", "tiny", "--steps", "2", "--threads", "1"]
    assert bench_frameworks.main([*command, "--json", str(file)]) == 0
    (row,) = bench_frameworks.read(file)
    assert (row.graphs, row.breaks) == (1, 0)
    assert row.ratio > 1
    assert row.eager_error < 1e-6
    assert 0 < row.compiled_error < 1e-10  # in float64
    assert f"median: {row.ratio:.2f} times less" in capsys.readouterr().out


def test_rows_that_are_not_exact_or_save_nothing_are_named() -> None:
    good = bench_frameworks.Row("a", 1, 0, (20, 10), (1.0, 1.0), 0.0, 1e-12)
    wrong = bench_frameworks.Row("b", 1, 0, (20, 10), (1.0, 1.0), 1e-3, 0.0)
    idle = bench_frameworks.Row("c", 2, 1, (20, 20), (1.0, 1.0), 0.0, 0.0)
    inexact = bench_frameworks.Row("d", 1, 0, (20, 10), (1.0, 1.0), 0.0, 1e-3)
    rows = [good, wrong, idle, inexact]
    expected = ["b: error 1.0e-03", "d: compiled error 1.0e-03", "c: nothing saved"]
    assert bench_frameworks.broken(rows) == expected
    assert bench_frameworks.table_of(rows, "nets").row_count == 4
