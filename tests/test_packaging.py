"""What is installed is complete, and the backend is found without importing snnfx."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import textwrap
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from tests.sources import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SITE_PACKAGES = Path(sysconfig.get_paths()["purelib"])
BUILD_INPUTS = ("snnfx", "passes", "kernels", "pyproject.toml", "README.md", "LICENSE")

IMPORTS = """
import snnfx, snnfx.errors, snnfx.passes.optable, snnfx.kernels
assert snnfx.passes.optable.OpTable.__module__ == "snnfx.passes.optable"
print(snnfx.errors.__file__, snnfx.passes.__file__, snnfx.kernels.__file__, sep="\\n")
"""

TRAINS = """
import sys
import torch

class Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return (x >= 0).to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad / (1 + x * x)

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(16, 16) for _ in range(3))

    def forward(self, x):
        for layer in self.layers:
            potential, spikes = torch.zeros_like(x[0]), []
            for step in layer(x):
                potential = 0.5 * potential + step
                spikes.append(Spike.apply(potential - 0.2))
            x = torch.stack(spikes)
        return x.mean()

def gradients(model, net):
    net.zero_grad()
    model(x).backward()
    return [parameter.grad.clone() for parameter in net.parameters()]

assert "snnfx" not in sys.modules
torch.manual_seed(0)
net, x = Net(), torch.randn(4, 8, 16)
compiled = torch.compile(net, backend="snnmem", options={"lowering": "eager"})
pairs = list(zip(gradients(compiled, net), gradients(net, net)))
assert all(torch.equal(a, b) for a, b in pairs) and all(a.abs().sum() > 0 for a, _ in pairs)
print(sys.modules["snnfx.backend"].__file__)
"""


def packages_on_disk() -> list[str]:
    """Every folder with Python files under snnfx/, as a package name; symlinks are followed."""
    folders = [
        Path(folder).relative_to(ROOT)
        for folder, _, files in os.walk(ROOT / "snnfx", followlinks=True)
        if any(name.endswith(".py") for name in files)
    ]
    return sorted(".".join(folder.parts) for folder in folders)


def run(python: Path | str, source: str, folder: Path) -> list[str]:
    """Run a script from `folder` and return the lines it prints."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [str(python), "-c", textwrap.dedent(source)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")[:-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy, so that no earlier build leaks into it."""
    folder = tmp_path_factory.mktemp("build")
    source = folder / "source"
    source.mkdir()
    for name in BUILD_INPUTS:
        if (ROOT / name).is_dir():
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignore)
        else:
            shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder]
    subprocess.run([*command, source], check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def fresh_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a new environment that holds the wheel, and torch with all it needs.

    The rest of this environment's packages are linked rather than installed again; whatever
    belongs to this project's own installation stays out.
    """
    folder = tmp_path_factory.mktemp("fresh")
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    others = folder / "others"
    others.mkdir()
    for entry in SITE_PACKAGES.iterdir():
        if "snnfx" not in entry.name and entry.suffix != ".pth":
            (others / entry.name).symlink_to(entry)
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    (site / "others.pth").write_text(f"{others}\n")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index"]
    subprocess.run([*pip, wheel], check=True, capture_output=True)
    return python


def test_the_list_of_packages_is_complete() -> None:
    assert sorted(PROJECT["tool"]["setuptools"]["packages"]) == packages_on_disk()


def test_every_package_is_a_regular_one() -> None:
    missing = [
        name
        for name in packages_on_disk()
        if not (ROOT.joinpath(*name.split(".")) / "__init__.py").exists()
    ]
    assert missing == []


@pytest.mark.parametrize("name", ["passes", "kernels"])
def test_the_top_folders_are_sub_packages_through_relative_links(name: str) -> None:
    link = ROOT / "snnfx" / name
    assert link.is_symlink()
    assert os.readlink(link) == f"../{name}"


def test_the_wheel_holds_every_source_file_once(wheel: Path) -> None:
    names = [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".py")]
    links = [
        Path(folder).relative_to(ROOT) / name
        for folder, _, files in os.walk(ROOT / "snnfx", followlinks=True)
        for name in files
        if name.endswith(".py")
    ]
    assert sorted(names) == sorted(path.as_posix() for path in links)


def test_the_wheel_carries_its_license_and_its_types(wheel: Path) -> None:
    names = {Path(name).name for name in zipfile.ZipFile(wheel).namelist()}
    assert {"LICENSE", "py.typed", "entry_points.txt"} <= names


def test_the_wheel_imports_from_another_folder(fresh_python: Path, tmp_path: Path) -> None:
    environment = fresh_python.parent.parent
    files = run(fresh_python, IMPORTS, tmp_path)
    assert len(files) == 3
    assert all(Path(file).is_relative_to(environment) for file in files)


def test_the_installed_package_imports_from_another_folder(tmp_path: Path) -> None:
    files = run(sys.executable, IMPORTS, tmp_path)
    assert all(Path(file).is_relative_to(ROOT / "snnfx") for file in files)


def test_the_package_imports_from_the_root_whatever_is_installed(fresh_python: Path) -> None:
    files = run(fresh_python, IMPORTS, ROOT)
    assert all(Path(file).is_relative_to(ROOT / "snnfx") for file in files)


def test_the_backend_trains_without_an_import_of_snnfx(fresh_python: Path, tmp_path: Path) -> None:
    (file,) = run(fresh_python, TRAINS, tmp_path)
    assert Path(file).is_relative_to(fresh_python.parent.parent)
