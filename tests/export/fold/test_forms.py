"""Every published form is one convolution, in float32 and, where its tensors can be converted, in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from forms import FORMS
from torch import nn

from edgefold.export.fold import fold_module
from edgefold.export.fold.fold import fold_tree
from edgefold.export.fold.kernel import FoldedConv


@pytest.mark.parametrize("name", FORMS)
def test_a_published_form_is_one_convolution_of_the_same_values(name: str) -> None:
    torch.manual_seed(0)
    module, shape = FORMS[name]()
    x = torch.randn(shape)

    tree = fold_tree(module.eval(), (x,), {})

    assert isinstance(tree.module, FoldedConv), [decision.reason for decision in tree.decisions]
    with torch.no_grad():
        expected, found = module(x), tree.module(x)
    assert (expected - found).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", [name for name in FORMS if "Python lists" not in name])
def test_a_form_in_float64_folds_to_twelve_digits(name: str) -> None:
    torch.manual_seed(1)
    module, shape = FORMS[name]()
    module = module.double().eval()
    x = torch.randn(shape, dtype=torch.float64)

    tree = fold_tree(module, (x,), {})

    assert isinstance(tree.module, FoldedConv)
    with torch.no_grad():
        expected, found = module(x), tree.module(x)
    assert (expected - found).abs().max() <= 1e-12 * expected.abs().max()


@pytest.mark.parametrize("name", ["HetConv, gathers", "DBB", "im2col and matmul", "Channel-local, sliding (Conv3d)"])
def test_a_form_in_functional_code_becomes_one_node(name: str) -> None:
    torch.manual_seed(2)
    module, shape = FORMS[name]()

    class Around(nn.Module):
        """A nonlinear module that runs the form's own code: nothing of it is a module that could be replaced."""

        def __init__(self) -> None:
            super().__init__()
            for path, child in module.named_children():
                self.add_module(path, child)
            vars(self).update({key: value for key, value in vars(module).items() if key not in vars(self)})
            self._buffers.update(module._buffers)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            run: Callable[[nn.Module, torch.Tensor], torch.Tensor] = type(module).forward
            return run(self, torch.relu(x)).sigmoid()

    around = Around().eval()
    x = torch.randn(shape)

    result = fold_module(around, x)

    ops = [str(node.target) for node in result.module.graph.nodes if node.op == "call_function"]
    assert ops == ["aten.relu.default", "aten.conv2d.default", "aten.sigmoid.default"]
    with torch.no_grad():
        torch.testing.assert_close(result.module(x)[0], around(x), rtol=0, atol=2e-5)
