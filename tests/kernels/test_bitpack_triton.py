"""The Triton kernels without a GPU: results by the interpreter, and builds for real targets."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def run_script(name: str, *arguments: str, **environment: str) -> str:
    """Run a script beside this file, with triton's variables as given, and return its output."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("TRITON_")}
    paths = [str(HERE.parents[1]), inherited.get("PYTHONPATH", "")]
    inherited["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    done = subprocess.run(
        [sys.executable, str(HERE / name), *arguments],
        env=inherited | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_interpreted_kernels_equal_the_reference() -> None:
    cases = int(run_script("triton_interpreter_cases.py", TRITON_INTERPRET="1"))
    assert cases > 200


@pytest.mark.parametrize("capability", ["80", "90"])
def test_kernels_compile_ahead_of_time(capability: str, tmp_path: Path) -> None:
    cache = str(tmp_path)
    output = run_script("triton_compile_cases.py", capability, TRITON_CACHE_DIR=cache)
    lines = output.splitlines()
    assert len(lines) == 36
    for line in lines:
        built_for, _, _, ptx_bytes, cubin_bytes = line.split()
        assert built_for == capability
        assert int(ptx_bytes) > 0, line
        assert int(cubin_bytes) > 0, line
