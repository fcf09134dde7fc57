import pytest
import torch
from torch import nn

from edgefold.export.capture import capture
from edgefold.quantize.calibrate import ScaleTable, annotated, attach, calibrate, output_sqnr_db
from edgefold.quantize.correct import correct_biases, equalize
from edgefold.quantize.insert import insert_qdq


def _uneven(activation: nn.Module, groups: int = 1) -> nn.Sequential:
    """Two convs whose channels differ by factors of up to 1000, as after training with BatchNorm."""
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=groups)
    factors = torch.logspace(-1.5, 1.5, 8)
    with torch.no_grad():
        first.weight *= factors[:, None, None, None]
        assert first.bias is not None
        first.bias *= factors
        if groups == 1:
            second.weight /= factors[None, :, None, None]
        else:
            second.weight /= factors[:, None, None, None]
    return nn.Sequential(first, activation, second).eval()


@pytest.mark.parametrize("groups", [1, 8])
@pytest.mark.parametrize("activation", [nn.Identity(), nn.ReLU(), nn.PReLU(8), nn.LeakyReLU(), nn.MaxPool2d(2)])
def test_equalization_changes_nothing_in_float_and_evens_the_channels(activation: nn.Module, groups: int) -> None:
    module = _uneven(activation.eval(), groups)
    program = capture(module, torch.zeros(1, 3, 8, 8))
    samples = [(torch.randn(1, 3, 8, 8),) for _ in range(8)]
    equalized, pairs = equalize(program.graph, samples)
    x = torch.randn(1, 3, 8, 8)
    torch.testing.assert_close(equalized(x)[0], module(x), rtol=1e-4, atol=1e-4)
    assert [pair.reason for pair in pairs] == [""]
    before, after = (
        output_sqnr_db(annotated(graph, calibrate(graph, samples, observer="minmax")), samples)
        for graph in (program.graph, equalized)
    )
    assert after > before + 6


@pytest.mark.parametrize("activation", [nn.ReLU6(), nn.Hardswish()])
def test_equalization_is_refused_across_activations_with_fixed_corners(activation: nn.Module) -> None:
    program = capture(_uneven(activation), torch.zeros(1, 3, 8, 8))
    equalized, pairs = equalize(program.graph)
    x = torch.randn(1, 3, 8, 8)
    assert torch.equal(equalized(x)[0], program.graph(x)[0])
    (pair,) = pairs
    assert (pair.first, pair.second) == ("0", "2")
    assert "does not scale with its input" in pair.reason


def test_equalization_makes_no_channel_of_small_weights_and_a_large_bias_the_largest() -> None:
    first = nn.Conv2d(3, 8, 3)
    module = nn.Sequential(first, nn.ReLU(), nn.Conv2d(8, 8, 3)).eval()
    with torch.no_grad():
        first.weight[2] *= 1e-6
        first.bias[2] = 3.0  # type: ignore[index]  # there is one
    samples = [(torch.randn(1, 3, 8, 8),) for _ in range(8)]
    program = capture(module, samples[0][0])
    before, after = (
        output_sqnr_db(annotated(graph, calibrate(graph, samples, observer="minmax")), samples)
        for graph in (program.graph, equalize(program.graph, samples)[0])
    )
    assert after > before - 1  # it was 30 dB less


def test_an_op_that_scales_but_moves_channels_is_no_activation() -> None:
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.b(self.a(x).flip(1))
            return y

    program = capture(Turned().eval(), torch.zeros(1, 3, 4, 4))
    (pair,) = equalize(program.graph)[1]
    assert "may move channels" in pair.reason


def test_equalization_does_not_cross_a_residual_add() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(torch.relu(self.a(x) + x))

    assert equalize(capture(Residual().eval(), torch.zeros(1, 3, 4, 4)).graph)[1] == ()


def test_bias_correction_restores_the_mean() -> None:
    torch.manual_seed(1)
    module = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3)).eval()
    conv = module[2]
    assert isinstance(conv, nn.Conv2d)
    with torch.no_grad():
        # All weights but one just above a multiple of the step: rounding shifts every output the same way.
        conv.weight.fill_(0.4 / 127)
        conv.weight[:, 0, 0, 0] = 1.0
    graph = capture(module, torch.zeros(1, 3, 8, 8)).graph
    samples = [(torch.randn(1, 3, 8, 8),) for _ in range(16)]
    table = calibrate(graph, samples, observer="minmax")
    corrected = correct_biases(graph, table, samples)
    with torch.no_grad():
        exact = torch.cat([graph(*sample)[0] for sample in samples])
        shift = []
        for candidate in (table, corrected):
            reference = insert_qdq(attach(graph, candidate), fold_weights=True)
            shift.append(float((torch.cat([reference(*sample)[0] for sample in samples]) - exact).mean().abs()))
    assert shift[1] < shift[0] / 10
    assert corrected.weights is table.weights


def test_what_bias_correction_gains_is_judged_against_the_float_network() -> None:
    torch.manual_seed(0)
    # Most weights of a channel lie just above a multiple of the step: rounding shifts its mean by more than it adds noise.
    layers: list[nn.Module] = []
    for _ in range(3):
        conv = nn.Conv2d(8, 8, 3, padding=1)
        with torch.no_grad():
            conv.weight.copy_((torch.randint(-20, 20, conv.weight.shape) + 0.45) / 127 / 8)
            conv.weight[:, 0, 1, 1] = 1 / 8
        layers += [conv, nn.ReLU()]
    graph = capture(nn.Sequential(*layers).eval(), torch.zeros(1, 8, 12, 12)).graph
    samples = [(torch.rand(1, 8, 12, 12) + 1,) for _ in range(8)]
    table = calibrate(graph, samples, observer="minmax")
    corrected = correct_biases(graph, table, samples)
    fresh = [(torch.rand(1, 8, 12, 12) + 1,) for _ in range(4)]

    def sqnr_db(each: ScaleTable) -> float:
        reference = insert_qdq(attach(graph, each), fold_weights=True)
        with torch.no_grad():
            y, q = (torch.cat([net(*sample)[0] for sample in fresh]).double() for net in (graph, reference))
        return float(10 * torch.log10(y.square().sum() / (y - q).square().sum()))

    assert corrected.biases
    assert sqnr_db(corrected) > sqnr_db(table) + 3


def test_bias_correction_that_does_not_help_is_not_kept() -> None:
    module = nn.Conv2d(3, 4, 1, bias=False).eval()
    graph = capture(module, torch.zeros(1, 3, 8, 8)).graph
    samples = [(torch.randn(1, 3, 8, 8),) for _ in range(4)]
    table = calibrate(graph, samples)
    assert correct_biases(graph, table, samples) is table
