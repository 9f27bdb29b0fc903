"""The benchmark measures what it says, and the demo trains on what it does not test on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.progress import Progress

import bench_counting
import bench_memory
import bench_prediction
import counting_peers
import train_digits
from bench_methods import METHODS, Session, Task, Worker, unavailable

from tests.sources import ROOT

TINY = {"width": 1 / 16, "batch": 2, "steps": 4, "size": 16}
EXACT = ["checkpoint", "spikingjelly"]


@pytest.mark.parametrize("model", ["vgg8", "vgg8_spikingjelly"])
@pytest.mark.parametrize("method", EXACT)
def test_methods_without_a_compiler_give_the_same_gradients_in_less_memory(
    model: str, method: str
) -> None:
    plain, other = (Session(Task(model, m, 1, 1, TINY)) for m in ("eager", method))
    assert plain.start() == other.start() == 0
    assert plain.error("float32") == other.error("float32") == other.error("float64") == 0
    less, all_of_it = other.memory()["activation_bytes"], plain.memory()["activation_bytes"]
    assert less < 0.8 * all_of_it


def test_a_wrong_gradient_shows_in_the_error() -> None:
    session = Session(Task("vgg8", "eager", 1, 1, TINY))
    with torch.no_grad():
        session.workload.model.readout.weight.mul_(1.01)
    assert session.error("float32") > 1e-3


def test_the_benchmark_prints_a_table_and_writes_its_figures(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    command = [sys.executable, "examples/bench_memory.py", "--width", "0.0625", "--size", "16"]
    command += ["--time-steps", "4", "--batch", "2", "--steps", "3", "--threads", "1"]
    command += ["--methods", "eager", "checkpoint", "--json", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "torch.utils.checkpoint per layer" in done.stdout
    eager, checkpoint = json.loads(file.read_text())["results"]
    assert len(eager["step_ms"]) == len(checkpoint["step_ms"]) == 3
    assert checkpoint["memory"]["activation_bytes"] < eager["memory"]["activation_bytes"]


def test_memory_optimization_is_measured_beside_its_peer_and_checked(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    command = [sys.executable, "examples/bench_memopt.py", "--model", "vgg8_spikingjelly"]
    command += ["--width", "0.125", "--size", "16", "--time-steps", "4", "--batch", "2"]
    command += ["--steps", "1", "--levels", "1", "4", "--threads", "1", "--check"]
    done = subprocess.run([*command, "--json", str(file)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "level 4: memopt levels 2-4 require CUDA" in done.stdout
    found = json.loads(file.read_text())["vgg8_spikingjelly"]
    assert list(found) == ["eager", "spikingjelly", "level 1", "level 4"]
    plain, one, four = (found[case]["activation_bytes"] for case in ("eager", "level 1", "level 4"))
    assert four <= one < 0.8 * plain
    assert found["level 1"]["done"]["gc_wrap_count"] == 8


def test_compressors_are_measured_at_each_rate(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    command = [sys.executable, "examples/bench_compressors.py", "--shape", "4", "2", "800"]
    command += ["--rates", "5", "50", "--repeats", "3", "--threads", "1", "--json", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Sparse, int32" in done.stdout
    rows = [m for m in json.loads(file.read_text())["measurements"] if m["library"] == "snnfx"]
    ratios = {(row["name"], row["rate_percent"]): row["ratio"] for row in rows}
    assert len(rows) == len(ratios) == 14
    assert [ratios[name, 5] for name in ("Null", "Boolean", "Uint8", "Bit")] == [1, 4, 4, 32]
    assert ratios["Sparse, int32", 5] == 2 * ratios["Sparse, int64", 5]
    assert 7 < ratios["Sparse, int64", 5] / ratios["Sparse, int64", 50] < 13
    assert all(row["compress_clones"] > 0 for row in rows)


def test_counters_are_compared_on_a_network_and_timed(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    command = [sys.executable, "examples/bench_counting.py", "--models", "vgg8_spikingjelly"]
    command += ["--width", "0.0625", "--size", "16", "--time-steps", "2", "--batch", "1"]
    command += ["--rounds", "1", "--threads", "1", "--static-model", "vgg8", "--check"]
    done = subprocess.run([*command, "--json", str(file)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "NO   " not in done.stdout.replace("NO   overhead", "")
    assert "vgg8: a training step counted from its graph in" in done.stdout
    found = json.loads(file.read_text())["vgg8_spikingjelly"]
    ours, theirs = (found[m]["counts"]["totals"] for m in ("dispatch", "spikingjelly"))
    assert ours["synops"] == theirs["synops"] > 0
    assert found["static"]["counts"]["totals"]["flops"] == ours["flops"]
    assert all(len(found[method]["step_ms"]) == 1 for method in ("plain", "dispatch", "static"))


def test_counts_that_differ_are_named_and_break_the_promise() -> None:
    empty: dict[str, dict[str, int]] = {quantity: {} for quantity in counting_peers.COUNTERS}
    ours = counting_peers.Counts({}, {**empty, "ac": {"aten.add.Tensor": 5, "aten.mm.default": 7}})
    theirs = counting_peers.Counts({}, {**empty, "ac": {"aten.mm.default": 9}})
    counts = {"dispatch": ours, "measured": theirs, "spikingjelly": theirs}
    found = bench_counting.Comparison(
        "vgg8",
        [10.0],
        {m: bench_counting.Result(m, counts.get(m), None, [15.0]) for m in bench_counting.METHODS},
    )
    assert bench_counting.differences(found) == [
        "ac of aten.add.Tensor: 5; SpikingJelly 0, which has no rule for it",
        "ac of aten.mm.default: 7; SpikingJelly 9",
    ]
    broken = [text for text, holds, _ in bench_counting.promises(found) if not holds]
    assert broken == [
        "ac: the graph counts what the run counts",
        "overhead at most 0.5 of SpikingJelly's: 1.00",
    ]
    assert bench_counting.table_of(found, "a net").row_count == 4


@pytest.mark.parametrize(
    ("package", "function"),
    [
        ("syops", counting_peers.syops),
        ("neurobench", counting_peers.neurobench),
        ("spikingjelly", counting_peers.spikingjelly),
    ],
)
def test_a_counter_whose_package_is_missing_says_how_to_install_it(
    package: str, function: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    net = bench_counting.prepared("vgg8", TINY)
    with pytest.raises(counting_peers.PeerMissingError, match=f"pip install .*{package}=="):
        function(net)


def test_predictions_are_measured_case_by_case_and_checked(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    command = [sys.executable, "examples/bench_prediction.py", "--models", "vgg8", "--levels", "1"]
    command += ["--lowerings", "eager", "--width", "0.125", "--size", "16", "--time-steps", "4"]
    command += ["--threads", "1", "--check", "--json", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "level 1, eager" in done.stdout
    planned, plain = json.loads(file.read_text())["results"]
    assert abs(planned["error"]) < 0.05
    assert planned["point"].startswith(("forward ", "backward "))
    assert plain["case"] == "plain PyTorch"
    assert planned["measured_bytes"] < plain["measured_bytes"]


def test_rows_beyond_the_tolerance_and_without_figures_fail_the_check() -> None:
    row = bench_prediction.Row("vgg8", "level 1, eager", 94, 100)
    free = bench_prediction.Row("vgg8", "level 0, inductor", 50, 100, is_held=False)
    failed = bench_prediction.Row("vgg8", "level 2, eager", note="eager failed at 'prediction'")
    rows = [row, free, failed]
    assert bench_prediction.off(rows, 5.0) == [row, failed]
    assert bench_prediction.off(rows, 7.0) == [failed]
    assert bench_prediction.table_of(rows, "peaks").row_count == 3


def test_a_method_that_fails_is_a_row_with_its_reason() -> None:
    failed = bench_memory.Result("vgg8", "inductor", note="inductor failed at 'start'")
    table = bench_memory.table_of([failed], "vgg8")
    assert table.row_count == 1
    assert table.caption == "n/a: torch.compile: inductor failed at 'start'"


def test_a_worker_that_dies_is_reported_with_the_command() -> None:
    worker = Worker(Task("vgg8", "eager", 1, 1, TINY))
    try:
        with pytest.raises(RuntimeError, match="eager failed at 'no_such_command'"):
            worker.ask("no_such_command")
    finally:
        worker.close()


def test_a_method_whose_package_is_missing_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    tasks = [Task("vgg8", "spikingjelly", 1, 1), Task("vgg8_spikingjelly", "eager", 1, 1)]
    assert [unavailable(task) for task in tasks] == ["spikingjelly is not installed"] * 2
    assert unavailable(Task("vgg8", "eager", 1, 1)) is None
    assert set(METHODS) > {"eager", "inductor", "checkpoint", "spikingjelly", "snnmem"}


def test_digits_are_split_without_overlap_and_batches_repeat() -> None:
    digits = train_digits.load(0)
    train, test = ({x.numpy().tobytes() for x in part} for part in (digits.train_x, digits.test_x))
    assert len(digits.test_x) == 450
    assert not train & test
    assert sorted(set(digits.train_y.tolist())) == list(range(10))
    first, again = (train_digits.batches(100, 32, 3, 0) for _ in range(2))
    assert [len(part) for part in first] == [32, 32, 32]
    assert torch.equal(torch.cat(first), torch.cat(again))
    assert len(torch.cat(first).unique()) == 96


def test_the_demo_trains_alike_from_one_seed_and_learns() -> None:
    arguments = train_digits.parse(["--epochs", "6", "--batch", "64"])
    digits = train_digits.load(0)
    digits.train_x, digits.train_y = digits.train_x[:256], digits.train_y[:256]
    digits.test_x, digits.test_y = digits.test_x[:10], digits.test_y[:10]
    with Progress(disable=True) as bar:
        first, second = (
            train_digits.train("run", lambda model: model, digits, arguments, bar) for _ in range(2)
        )
    assert first.losses == second.losses
    assert first.losses[-1] < 0.8 * first.losses[0]
    assert first.memory is not None
    assert first.memory.activation_bytes > first.memory.gradient_bytes


def test_an_exported_network_trains_in_a_fresh_process_without_a_difference(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    command = [sys.executable, "examples/export_and_train.py", "--models", "vgg8"]
    command += ["--width", "0.0625", "--level", "1", "--json", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(file.read_text())["results"]
    assert result["difference"] == 0
    assert result["file_bytes"] > result["state_bytes"] > 0
    assert "vgg8" in done.stdout
