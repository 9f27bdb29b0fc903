"""The picture of a plan: both curves, the segments, readable labels."""

from __future__ import annotations

import builtins
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest

from snnfx.errors import PlanError
from snnfx.passes.plan.memory_plan import MemoryPlan, Segment

from tests.passes.plans import EMPTY, FULL, PLAN


def svg(plan: MemoryPlan, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The picture as SVG, with its text as text."""
    monkeypatch.setitem(matplotlib.rcParams, "svg.fonttype", "none")
    path = folder / "plan.svg"
    plan.plot(path)
    return path.read_text()


@pytest.mark.parametrize("plan", [FULL, PLAN, EMPTY], ids=["full", "plain", "empty"])
def test_the_plot_is_a_picture(plan: MemoryPlan, tmp_path: Path) -> None:
    path = tmp_path / "plan.png"
    plan.plot(str(path))
    pixels = matplotlib.image.imread(path)
    assert pixels.shape[:2] == (660, 1200)
    assert pixels[..., :3].std() > 0.01


@pytest.mark.parametrize(("suffix", "start"), [(".svg", b"<?xml"), (".pdf", b"%PDF")])
def test_the_suffix_gives_the_format(suffix: str, start: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"plan{suffix}"
    PLAN.plot(path)
    assert path.read_bytes().startswith(start)


def test_the_plot_draws_both_timelines(tmp_path: Path) -> None:
    path = tmp_path / "plan.png"
    PLAN.plot(path)
    pixels = matplotlib.image.imread(path)[..., :3]
    saturated = pixels[(pixels.max(-1) - pixels.min(-1)) > 0.4]
    colours = {tuple(round(float(c), 1) for c in pixel) for pixel in saturated}
    blue, orange = (0.1, 0.5, 0.7), (1.0, 0.5, 0.1)
    assert {blue, orange} <= colours


def test_peaks_units_segments_and_tiles_are_labelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = svg(FULL, tmp_path, monkeypatch)
    for label in (
        "160.0 MiB in grad",
        "40.0 MiB in norm_again",
        "predicted activation memory [MiB]",
        "plan of level 4",
        "without a plan",
        "computed again in tiles",
        "conv_1 ×4 batch",  # noqa: RUF001
    ):
        assert f">{label}<" in text, label


def test_a_plan_that_is_not_applied_has_one_curve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = svg(replace(FULL, applied=False), tmp_path, monkeypatch)
    assert "without a plan" in text
    assert "plan of level" not in text


def test_the_unit_follows_the_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scaled = replace(PLAN.baseline, forward=(3 * 1024**3,))
    assert "[GiB]" in svg(replace(PLAN, baseline=scaled), tmp_path, monkeypatch)


def test_labels_of_many_segments_are_thinned_and_tiles_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = 200
    many = tuple(
        Segment(f"conv_{i}", (), 1, 10, 2 if i == 77 else 1, "time", (2 * i, 2 * i + 1))
        for i in range(steps // 2)
    )
    timeline = replace(FULL.predicted, backward=tuple(range(steps)), backward_names=("x",) * steps)
    text = svg(replace(FULL, segments=many, predicted=timeline), tmp_path, monkeypatch)
    labels = [f"conv_{i}" for i in range(steps // 2) if f">conv_{i}<" in text]
    assert 5 <= len(labels) <= 14
    assert ">conv_77 ×2 time<" in text  # noqa: RUF001


def test_an_unknown_suffix_is_an_error_that_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"must be one of \.png, \.svg, \.pdf"):
        PLAN.plot(tmp_path / "plan.bmp")
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_the_error_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == "matplotlib":
            raise ImportError(f"No module named '{name}'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ImportError, match=r"pip install 'snnfx\[plot\]'"):
        PLAN.plot(tmp_path / "plan.png")
