"""The counter takes what SpikeSim models, and says of all else why not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from snnfx.errors import OptionError, UncountedError
from snnfx.op_counter import DispatchCounterMode, SpikeSimCounter, SpikeSimEnergyConfig

aten = torch.ops.aten


class Functional(nn.Module):
    """A convolution that no nn.Conv2d runs."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, torch.ones(2, x.shape[1], 3, 3))


def counter(**options: bool) -> SpikeSimCounter:
    given = {"strict": False, "verbose": False, **options}
    return SpikeSimCounter(config=SpikeSimEnergyConfig(xbar_size=4), **given)


def run(counted: SpikeSimCounter, model: nn.Module, x: Tensor) -> SpikeSimCounter:
    with DispatchCounterMode([counted]), torch.no_grad():
        model(x)
    return counted


def image(channels: int = 4) -> Tensor:
    return torch.rand(1, channels, 6, 6)


OUTSIDE: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], str]] = {
    "transposed": (lambda: nn.ConvTranspose2d(4, 2, 3).eval(), image, "it is transposed"),
    "grouped": (lambda: nn.Conv2d(4, 4, 3, groups=2).eval(), image, "it has 2 groups"),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4).eval(), image, "it has 4 groups"),
    "1D": (lambda: nn.Conv1d(4, 2, 3).eval(), lambda: torch.rand(1, 4, 6), "it is not 2D"),
    "3D": (lambda: nn.Conv3d(4, 2, 3).eval(), lambda: torch.rand(1, 4, 6, 6, 6), "it is not 2D"),
    "training": (lambda: nn.Conv2d(4, 2, 3), image, r"training mode.*call eval\(\)"),
    "functional": (Functional, image, "not the one of a single nn.Conv2d"),
}


@pytest.mark.parametrize("case", OUTSIDE)
def test_what_is_outside_of_the_model_is_warned_of_once_and_counts_nothing(case: str) -> None:
    build, x, reason = OUTSIDE[case]
    model, counted = nn.Sequential(build()), counter()
    with DispatchCounterMode([counted]), torch.no_grad():
        model(x())
        model(x())
    assert counted.get_total() == 0
    assert counted.get_stage_stats() == {}
    (warning,) = counted.warnings
    assert warning.startswith("SpikeSim leaves out a convolution in 'Sequential.0': ")
    with pytest.raises(UncountedError, match=reason):
        run(counter(strict=True), model, x())


def test_convolutions_with_gradients_are_outside_of_the_model() -> None:
    counted = counter()
    with DispatchCounterMode([counted]):
        nn.Conv2d(4, 2, 3).eval()(image())
    assert counted.get_total() == 0
    assert "use torch.no_grad()" in counted.warnings[0]


def test_cycles_are_on_record_for_each_scope() -> None:
    """4 x 4 sites, 2 tiles of 5 input channels, 3 tiles of 9 output channels."""
    counted = run(counter(), nn.Sequential(nn.Conv2d(5, 9, 3)).eval(), image(5))
    cycles = {aten.convolution.default: 16 * 2 * 3}
    assert counted.get_counts() == dict.fromkeys(("Global", "Sequential", "Sequential.0"), cycles)
    assert counted.get_stage_metadata()["Sequential.0"]["input_tile_channels"] == [4, 1]


def test_other_operators_have_no_rule() -> None:
    counted = counter()
    assert not counted.has_rule(aten.mm.default)
    with pytest.raises(UncountedError, match=r"no rule for aten\.mm"):
        counted.count(aten.mm.default, (), {}, None)


def test_a_reset_forgets_counts_stages_and_warnings() -> None:
    counted = counter()
    run(counted, nn.Sequential(nn.Conv2d(4, 2, 3), nn.Conv2d(2, 2, 3, groups=2)).eval(), image())
    assert counted.get_total() > 0
    assert counted.warnings
    counted.reset()
    assert (counted.get_total(), counted.get_stage_stats(), counted.warnings) == (0, {}, [])


def test_inconsistent_shapes_are_warned_of_and_add_up() -> None:
    model, counted = nn.Conv2d(4, 2, 3).eval(), counter()
    with DispatchCounterMode([counted]), torch.no_grad():
        for side in (6, 7, 8):
            model(torch.rand(1, 4, side, side))
    (warning,) = counted.warnings
    assert "(1, 4, 7, 7) to (1, 2, 5, 5), first (1, 4, 6, 6) to (1, 2, 4, 4)" in warning
    assert counted.get_stage_metadata()["Conv2d"]["shape_mismatch_detected"]
    assert counted.get_stage_metadata()["Conv2d"]["total_calls"] == 3
    assert counted.get_total() == 16 + 25 + 36
    strict = counter(strict=True)
    with DispatchCounterMode([strict]), torch.no_grad():
        model(torch.rand(1, 4, 6, 6))
        with pytest.raises(UncountedError, match="other shapes than before"):
            model(torch.rand(1, 4, 7, 7))


def test_calls_with_other_channels_are_priced_by_their_own() -> None:
    """Two models of one class share a scope; the peer prices all calls as the first, or fails."""
    config = SpikeSimEnergyConfig(xbar_size=4, activity_mode="event")
    models = [nn.Conv2d(4, 2, 3).eval(), nn.Conv2d(9, 5, 1).eval()]
    energies: list[float] = []
    for group in ([models[0]], [models[1]], models):
        counted = SpikeSimCounter(config=config, strict=False, verbose=False)
        with DispatchCounterMode([counted]), torch.no_grad():
            for model in group:
                model(torch.ones(1, model.in_channels, 6, 6))
        energies.append(counted.stages["Conv2d"].energy_pj(config)["total_pj"])
        rows = counted.get_stage_stats()["Conv2d"]["active_row_count_by_tile"]
        assert (rows is None) == (len(group) == 2)
    assert energies[2] == pytest.approx(energies[0] + energies[1])


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_a_rounded_up_padding_is_counted_as_it_runs() -> None:
    """``"same"`` with an even kernel pads one side more, which runs as a pad and a convolution."""
    counted = run(counter(), nn.Conv2d(4, 2, 4, padding="same").eval(), image())
    assert counted.get_total() == 36


def test_verbose_prints_a_line_for_each_convolution(capsys: pytest.CaptureFixture[str]) -> None:
    run(counter(verbose=True), nn.Conv2d(4, 2, 3).eval(), image())
    assert "SpikeSim: Conv2d: 16 cycles, 16 of 16 patches" in capsys.readouterr().out


def test_invalid_configurations_are_refused() -> None:
    with pytest.raises(OptionError, match="device must be 'rram' or 'sram'"):
        SpikeSimCounter(config=SpikeSimEnergyConfig(device="dram"), strict=False, verbose=False)
