"""Weights that are powers of two, against a search among all of them and a network in float64."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

import edgefold
from edgefold.errors import UnsupportedError
from edgefold.quantize.calibrate import annotated, attach, output_sqnr_db
from edgefold.quantize.insert import insert_qdq
from edgefold.quantize.power_study import compare, int8_table
from edgefold.quantize.powers import round_to_powers

IMAGES = torch.randn(8, 3, 10, 10, generator=torch.Generator().manual_seed(1))


def searched(weight: NDArray[np.float64], bits: int) -> NDArray[np.float64]:
    """Each weight (N, ...) at the nearest of its channel's numbers, found by trying them all; of two the larger."""
    found = np.zeros_like(weight)
    for channel, row in enumerate(weight):
        powers = 2.0 ** np.arange(-140, 20)
        top = int(np.argmin(np.abs(powers - np.abs(row).max()) - 1e-12 * powers))
        allowed = np.concatenate([powers[top - (2**bits - 2) : top + 1][::-1], [0.0]])
        nearest = np.abs(np.abs(row)[..., None] - allowed).argmin(-1)
        found[channel] = np.sign(row) * allowed[nearest]
    return found


@pytest.mark.parametrize("bits", [1, 2, 4, 6])
@pytest.mark.parametrize("shape", [(5, 7), (6, 3, 3, 3), (4, 1, 5)])
def test_each_weight_goes_to_the_nearest_power_of_its_channel(bits: int, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(bits)
    weight = rng.standard_normal(shape) * 2.0 ** rng.integers(-8, 3, (shape[0], *[1] * (len(shape) - 1)))
    weight.flat[::5] *= 2.0**-9  # below the range of few bits
    weight.flat[3] = 0.0
    weight = weight.astype(np.float32).astype(np.float64)
    found = round_to_powers(torch.from_numpy(weight), bits).double().numpy()
    np.testing.assert_array_equal(found, searched(weight, bits))


def test_borders_and_channels_of_zeros() -> None:
    weight = torch.tensor([[1.0, 1.499, 1.5, -0.75, 0.7499, 0.25, 0.2499], [0.0] * 7])
    found = round_to_powers(weight, 2)  # 2, 1, 1/2 and 0: the largest weight is 1.5
    assert found[0].tolist() == [1.0, 1.0, 2.0, -1.0, 0.5, 0.5, 0.0]
    assert found[1].tolist() == [0.0] * 7


def make_net() -> nn.Sequential:
    torch.manual_seed(7)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(12, 12, 3, padding=1, groups=12),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 6),
    ).eval()


def test_the_simulated_network_is_the_one_in_float64() -> None:
    program = edgefold.quantize_model(make_net(), IMAGES[:1], calibration=IMAGES, scheme="log2", observer="minmax")
    net = copy.deepcopy(make_net()).double()
    params = {name: (p.scale, p.zero_point) for name, p in program.table.activations.items()}
    layers = [layer for layer in net if isinstance(layer, nn.Conv2d | nn.Linear)]
    for layer, name in zip(layers, program.table.weights, strict=True):
        layer.weight.data = torch.from_numpy(searched(layer.weight.data.numpy(), 4))
        if name in program.table.biases:
            assert layer.bias is not None
            layer.bias.data = program.table.biases[name].double()
    order = list(params)

    def grid(name: str, x: torch.Tensor) -> torch.Tensor:
        scale, zero = params[name]
        return (torch.clamp(torch.round(x / scale) + zero, -128, 127) - zero) * scale

    with torch.no_grad():
        y = grid(order[0], IMAGES.double())
        # A value is quantized after the activation that is fused into its layer; flattening keeps its numbers.
        quantized = {1: order[1], 3: order[2], 4: order[3], 6: order[-1]}
        for index, module in enumerate(net):
            y = module(y)
            if index in quantized:
                y = grid(quantized[index], y)
        found = torch.cat([program.reference()(image[None])[0] for image in IMAGES])
    # A value on the border between two integers may fall to either side in float32.
    assert float((found - y).abs().max()) <= 2 * params[order[-1]][0]
    assert float((found - y).abs().mean()) <= 0.1 * params[order[-1]][0]


def test_study_compares_with_int8_weights_of_the_same_calibration() -> None:
    program = edgefold.quantize_model(make_net(), IMAGES[:1], calibration=IMAGES, scheme="log2", observer="minmax")
    linear = edgefold.quantize_model(make_net(), IMAGES[:1], calibration=IMAGES, scheme="int8", observer="minmax")
    samples = [(image[None],) for image in IMAGES]
    graph = program.canonical.graph
    integers = int8_table(graph, program.table, samples)
    assert integers.activations == linear.table.activations
    study = compare(graph, program.table, integers, samples)
    assert integers.rounded == {}
    reference = insert_qdq(attach(graph, integers), fold_weights=True)
    with torch.no_grad():
        y, q = (torch.cat([net(*sample)[0] for sample in samples]).double() for net in (graph, reference))
    assert study.int8_db == pytest.approx(float(10 * torch.log10(y.square().sum() / (y - q).square().sum())))
    assert study.log2_db == pytest.approx(output_sqnr_db(annotated(graph, program.table), samples))
    assert study.log2_db < study.int8_db
    assert [layer.name for layer in study.layers] == ["0", "2", "6"]
    for layer, module in zip(study.layers, (make_net()[0], make_net()[2], make_net()[6]), strict=True):
        weight = module.weight.detach().double().numpy()  # type: ignore[operator]  # convs and a linear layer
        noise = ((weight - searched(weight, 4)) ** 2).sum()
        assert layer.log2_weight_db == pytest.approx(10 * np.log10((weight**2).sum() / noise))
        assert layer.log2_weight_db < layer.int8_weight_db
        assert layer.log2_alone_db < layer.int8_alone_db


def test_more_exponents_lose_no_more() -> None:
    def weight_db(bits: int) -> float:
        weight = torch.randn(8, 200, generator=torch.Generator().manual_seed(2))
        noise = (weight - round_to_powers(weight, bits)).double().square().sum()
        return float(noise)

    assert weight_db(1) > weight_db(2) > weight_db(3) >= weight_db(4)


@pytest.mark.parametrize("format", ["onnx", "tflite", "executorch"])
def test_there_is_no_file(format: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="no runtime has kernels that shift") as caught:
        edgefold.export_model(make_net(), IMAGES[:1], format=format, precision="log2", calibration=IMAGES, out=tmp_path / "net")
    assert caught.value.exit_code == 2
    with pytest.raises(UnsupportedError, match="it is a study in torch"):
        edgefold.ship(make_net(), IMAGES[:1], IMAGES, formats=[format], precisions=["fp32", "log2"], out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
