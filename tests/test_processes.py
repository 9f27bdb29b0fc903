"""Training on several processes gives the same losses and plans on every rank, in less memory."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.sources import ROOT

ROW = re.compile(r"│ +(\d+) │ (\w+) │ +(\d+) │.*│ +[\d.]+ \(([\d.]+)x less\) │")


def launch(processes: int, *options: str) -> tuple[str, list[tuple[str, ...]]]:
    """Run the example on so many processes; what it prints, and the row of each rank."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    command += [str(processes), "examples/train_ddp.py", "--steps", "3", "--channels", "16"]
    # Names are hashed otherwise in each process, as they are unless someone fixes the seed.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "random"}
    done = subprocess.run(
        [*command, *options], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, ROW.findall(done.stdout)


@pytest.mark.parametrize(
    ("processes", "options"),
    [
        (2, ("--parallel", "ddp", "--amp", "--accumulate", "2")),
        (2, ("--parallel", "fsdp", "--amp", "--accumulate", "2")),
        (4, ("--parallel", "ddp", "--level", "1")),
    ],
    ids=["ddp", "fsdp", "four processes"],
)
def test_every_rank_plans_the_same_and_trains_as_without(
    processes: int, options: tuple[str, ...]
) -> None:
    output, ranks = launch(processes, *options)
    assert "plans of all ranks equal: True; losses equal to plain's: True" in output
    assert [rank for rank, *_ in ranks] == [str(number) for number in range(processes)]
    assert {plan for _, plan, *_ in ranks} == {ranks[0][1]}
    assert all(graphs == "1" for _, _, graphs, _ in ranks)
    assert all(float(less) > 1.5 for *_, less in ranks)


def test_ranks_that_plan_otherwise_are_told(capfd: pytest.CaptureFixture[str]) -> None:
    """The comparison of the example can fail: it is not equal whatever happens."""
    sys.path.insert(0, str(ROOT / "examples"))
    import torch.distributed as dist

    import train_ddp

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        arguments = train_ddp.parse([])
        plain = train_ddp.Run([1.0, 2.0], [1.0], 8, [])
        other = train_ddp.Run([1.0, 2.5], [1.0], 4, ["plan"])
        assert not train_ddp.report(plain, other, arguments)
        assert train_ddp.report(plain, plain, arguments)
    finally:
        dist.destroy_process_group()
    assert "losses equal to plain's: False" in capfd.readouterr().out
