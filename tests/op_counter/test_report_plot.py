"""Pictures of counts, energies and rooflines: that they are drawn, and from which numbers."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import matplotlib
import pytest

from snnfx.errors import OptionError
from snnfx.op_counter.report import CountReport
from snnfx.op_counter.report_energy import energy_json, energy_parts, energy_table, format_pj
from snnfx.op_counter.report_plot import MAX_BARS, draw_energy, operator_bars, priced
from snnfx.op_counter.report_roofline import roofline_points
from snnfx.passes.cost.roofline import DEVICES

from tests.op_counter.report_cases import CONV, aten, entry, small_report, symbolic_report
from tests.op_counter.test_report_table import text_of


@dataclass
class Energies:
    """What all energy reports have in common."""

    energy_total_pj: float = 10_000.0
    energy_by_stage: dict[str, float] = field(
        default_factory=lambda: {"forward": 2500.0, "backward": 7500.0}
    )
    energy_by_memory_level_dir: dict[str, Any] = field(
        default_factory=lambda: {"sram": {"read": 1500.0, "write": 500.0}, "reg": {"read": 0.0}}
    )
    warnings: list[str] = field(default_factory=lambda: ["pooling is outside of the model"])


@pytest.fixture(autouse=True)
def _text_stays_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(matplotlib.rcParams, "svg.fonttype", "none")


@pytest.mark.parametrize(
    "draw",
    [
        lambda path: small_report().plot(path),
        lambda path: small_report().roofline(path, "cpu"),
        lambda path: draw_energy(Energies(), path),
    ],
)
def test_pictures_are_drawn_in_each_format(draw: Callable[[Path], None], tmp_path: Path) -> None:
    starts = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}
    for suffix, start in starts.items():
        path = tmp_path / f"picture{suffix}"
        draw(path)
        assert path.read_bytes().startswith(start)
    with pytest.raises(OptionError, match=r"must be one of \.png, \.svg, \.pdf"):
        draw(tmp_path / "picture.bmp")


def test_a_panel_for_each_quantity_names_operators_and_counts(tmp_path: Path) -> None:
    small_report().plot(tmp_path / "counts.svg")
    text = (tmp_path / "counts.svg").read_text()
    for expected in ("FLOPs", "SynOps", "aten.mm.default", "1.23 M", "forward", "backward"):
        assert expected in text


def test_bars_are_the_totals_of_operators() -> None:
    report = small_report()
    bars = operator_bars(report, "flops")
    assert bars["aten.convolution_backward.default"] == {"backward": 8000.0}
    assert sum(sum(series.values()) for series in bars.values()) == report.total("flops")
    assert operator_bars(report, "ac") == {"aten.mm.default": {"forward": 30.0}}


def test_all_but_the_longest_bars_are_one(tmp_path: Path) -> None:
    names = [f"mine.op{index}.default" for index in range(MAX_BARS + 3)]
    entries = [entry((), name, 1, 10 + index) for index, name in enumerate(names)]
    CountReport(tuple(entries), (), {}, ()).plot(tmp_path / "counts.svg")
    text = (tmp_path / "counts.svg").read_text()
    assert "all others" in text
    assert ">33<" in text  # 10 + 11 + 12
    assert names[2] not in text
    assert names[3] in text


def test_counts_in_symbols_are_not_drawn_and_the_error_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"ACs of aten.mm.default .* count with rates=0\.1"):
        symbolic_report().plot(tmp_path / "counts.svg")
    symbolic_report().roofline(tmp_path / "roofline.svg", "cpu")  # FLOPs and bytes are numbers
    assert "heads.0" in (tmp_path / "roofline.svg").read_text()


def test_an_empty_report_has_nothing_to_draw(tmp_path: Path) -> None:
    empty = CountReport((), (), {}, ())
    with pytest.raises(OptionError, match="nothing to draw"):
        empty.plot(tmp_path / "counts.svg")
    with pytest.raises(OptionError, match="no FLOPs and bytes"):
        empty.roofline(tmp_path / "roofline.svg", "cpu")


def test_each_layer_stands_on_the_roof() -> None:
    device = DEVICES["cpu"]
    points = roofline_points(small_report(), "cpu")
    assert len(points) == 5  # the convolution twice
    for point in points:
        roof = min(device.flops_per_second, point.intensity * device.bytes_per_second)
        assert point.attainable_flops_per_second == pytest.approx(roof)
        assert point.seconds == pytest.approx(point.flops / roof)
        ridge = device.flops_per_second / device.bytes_per_second
        assert point.bound == ("compute" if point.intensity >= ridge else "memory")
    assert [p.seconds for p in points] == sorted((p.seconds for p in points), reverse=True)
    assert points[0].module == "Net.heads.0"
    assert points[0].bound == "compute"
    assert {p.stage for p in points if p.module == CONV} == {"forward", "backward"}


def test_the_roofline_names_device_and_layers(tmp_path: Path) -> None:
    small_report().roofline(tmp_path / "roofline.svg", "NVIDIA A100")
    text = (tmp_path / "roofline.svg").read_text()
    for expected in ("NVIDIA A100", "16.0 TFLOP/s, 1.50 TB/s", "heads.0", "FLOP/byte"):
        assert expected in text


def test_a_device_that_is_not_known_is_refused_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="no roofline of a device 'abacus'; there are 'cpu', "):
        small_report().roofline(tmp_path / "roofline.svg", "abacus")


def test_a_roofline_of_symbols_is_refused() -> None:
    report = symbolic_report()
    odd = replace(report.operators[3], counts={"flops": report.operators[3].counts["ac"]})
    with pytest.raises(OptionError, match="needs flops that are numbers"):
        roofline_points(replace(report, operators=(odd,)), "cpu")


def test_without_matplotlib_the_error_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'snnfx\[plot\]'"):
        small_report().plot(tmp_path / "counts.png")


def test_an_energy_report_divides_by_each_of_its_fields() -> None:
    stage, level = energy_parts(Energies())
    assert (stage.title, dict(stage.energies_pj)) == (
        "by stage",
        {"forward": 2500.0, "backward": 7500.0},
    )
    assert dict(level.energies_pj) == {"sram/read": 1500.0, "sram/write": 500.0, "reg/read": 0.0}


def test_energies_are_shown_in_readable_units_with_their_shares() -> None:
    class Shown:
        def table(self) -> Any:
            return energy_table(Energies(), "a net")

    text = text_of(Shown())  # type: ignore[arg-type]
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "in all 10 nJ" in lines
    assert "backward 7.5 nJ 75.0%" in lines
    assert "sram/write 500 pJ 5.0%" in lines
    assert "pooling is outside of the model" in text
    assert [format_pj(e) for e in (0, 3.14159, 1e6, 2.5e12)] == ["0 pJ", "3.14 pJ", "1 uJ", "2.5 J"]


def test_energy_json_holds_all_fields() -> None:
    document = json.loads(energy_json(Energies()))
    assert document == {"version": 1, **vars(Energies())}
    with pytest.raises(TypeError, match="is a dataclass, not a dict"):
        energy_json({})


def test_drawn_energies_are_labelled(tmp_path: Path) -> None:
    draw_energy(Energies(), tmp_path / "energy.svg")
    text = (tmp_path / "energy.svg").read_text()
    for expected in ("energy by stage", "7.5 nJ", "sram/write"):
        assert expected in text
    assert "reg/read" not in text  # it is nothing


def test_operators_are_priced_by_what_they_count(tmp_path: Path) -> None:
    energies = priced(small_report(), {"mac": 4.5, "ac": 0.5})
    assert {name: dict(stages) for name, stages in energies.items()} == {
        "aten.convolution.default": {"forward": 2000 * 4.5},
        "aten.convolution_backward.default": {"backward": 4000 * 4.5},
        "aten.mm.default": {"forward": 30 * 0.5},
    }
    draw_energy(Energies(), tmp_path / "energy.svg", energies)
    text = (tmp_path / "energy.svg").read_text()
    for expected in ("energy by operator", "aten.mm.default", "18 nJ", "energy by stage"):
        assert expected in text


def test_the_operators_of_a_report_are_those_of_the_test() -> None:
    assert small_report().records("ac")["Global"] == {
        aten.convolution.default: 0,
        aten.mul.Tensor: 0,
        aten.mm.default: 30,
        aten.convolution_backward.default: 0,
    }
