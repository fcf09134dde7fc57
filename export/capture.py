"""From an `nn.Module` and example inputs to one ATen graph with plain positional inputs and a flat tuple of outputs."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.graph import CodeGen
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from edgefold.batch import Batch, as_tensors, refuse_labels
from edgefold.errors import ModelError, UnsupportedError, first_line
from edgefold.export.constants import fold_constants
from edgefold.export.functional import MANY, is_simple, make_functional
from edgefold.export.plain_ops import plain_ops
from edgefold.export.program import Program

# Ops that say nothing about the values of their input in inference.
_IDENTITIES = frozenset(
    {
        torch.ops.aten.alias.default,
        torch.ops.aten.clone.default,
        torch.ops.aten.contiguous.default,
        torch.ops.aten.detach.default,
        torch.ops.aten.dropout.default,
        torch.ops.aten.feature_dropout.default,
        torch.ops.aten.lift_fresh_copy.default,
    }
)

_GET_DATA, _SET_DATA = (getattr(vars(torch._C.TensorBase)["data"], name) for name in ("__get__", "__set__"))
_VIEWS = frozenset({torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default})


@torch.inference_mode(False)
def capture(module: nn.Module, example_inputs: Batch) -> Program:
    """The module's graph for inputs of the shapes of ``example_inputs``.

    The graph holds functional ATen ops (``aten.conv2d.default`` and so on), takes one positional tensor an input and returns
    a flat tuple, without outputs that are ``None``. The module is not changed, nor are the example inputs, also where its code
    writes into its input. Strided example inputs are made contiguous first: their memory format would otherwise leak into the
    graph.

    Raises:
        ModelError: not a module, in train mode, with NaN or infinite weights, or it fails on the inputs.
        DataError: ``example_inputs`` is not a batch, or is an (image, label) pair.
        UnsupportedError: the module cannot be captured (control flow that depends on data, a missing op).
    """
    check_module(module)
    args, kwargs = as_arguments(module, example_inputs)
    writes = run_once(module, args, kwargs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # notes of the exporter to its own developers
        try:
            with DataAsAlias(), _inputs_copied(module) if writes else nullcontext():
                exported = torch.export.export(module, args, kwargs, strict=False)
                simple = len(exported.graph.nodes) > MANY and is_simple(exported.graph)
                if not simple:
                    exported = exported.run_decompositions({})
        except Exception as error:  # the exporter raises whatever the module's code or its own passes raise
            taken = _taken_names(module)
            remedy = (
                f"rename its part '{taken[0]}', since torch's graphs keep this name for themselves"
                if taken
                else "remove control flow that depends on tensor values, or give the part without it"
            )
            raise UnsupportedError(
                f"model {type(module).__name__} cannot be captured as a graph: {first_line(error)}; {remedy}"
            ) from error
    graph_module = exported.module(check_guards=False)
    assert isinstance(graph_module, GraphModule)
    if simple:
        make_functional(graph_module.graph)
    flat = pytree.tree_leaves(graph_module.graph.output_node().args[0])
    names = _output_names(exported.call_spec.out_spec, [value is not None for value in flat])
    if not names:
        raise ModelError(f"model {type(module).__name__} returns nothing but None, expected at least one tensor")
    _flatten(graph_module)
    plain_ops(graph_module)
    fold_constants(graph_module)
    placeholders = [str(node.target) for node in graph_module.graph.nodes if node.op == "placeholder"]
    return Program(graph_module, (*args, *kwargs.values()), tuple(placeholders), names)


@contextmanager
def _inputs_copied(module: nn.Module) -> Iterator[None]:
    """Gives a module that writes into its input a copy of it, for the time of a capture."""

    def copied(module: nn.Module, args: Any, kwargs: Any) -> Any:
        return copies_of(args, kwargs)

    hook = module.register_forward_pre_hook(copied, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


class DataAsAlias(TorchFunctionMode):
    """Makes code that masks its weights through ``.data`` traceable, which autograd, and so the exporter, does not see.

    ``tensor.data`` is a detached alias while the mode is on, and an assignment to it writes the values into the tensor.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func == _GET_DATA:
            return args[0].detach()
        if func == _SET_DATA:
            with torch.no_grad():
                args[0].copy_(args[1])
            return None
        return func(*args, **(kwargs or {}))


def _taken_names(module: nn.Module) -> list[str]:
    """The modules and parameters at the top that have the name of an attribute of a graph."""
    own = {*dir(GraphModule), *vars(GraphModule(nn.Module(), Graph()))}
    parts = (*module.named_children(), *module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    return [name for name, _ in parts if name in own]


def check_module(module: object) -> None:
    """Refuses what is not a module in eval mode with finite weights.

    Raises:
        ModelError: with the fix.
    """
    for name, weight in check_mode(module):
        if weight.is_floating_point() and not bool(torch.isfinite(weight).all()):
            raise ModelError(f"weight '{name}' holds NaN or infinite values; load a sound checkpoint")


def check_mode(module: object) -> list[tuple[str, Tensor]]:
    """The parameters and buffers of a module in eval mode, by name; refuses another one, and weights that no graph can hold.

    Raises:
        ModelError: with the fix.
    """
    if not isinstance(module, nn.Module):
        raise ModelError(f"model is a {type(module).__name__}, expected a torch.nn.Module")
    training = [name or type(module).__name__ for name, part in module.named_modules() if part.training]
    if training:
        raise ModelError(f"model is in train mode ('{training[0]}' and {len(training) - 1} more modules); call .eval() first")
    weights = [*module.named_parameters(), *module.named_buffers()]
    for name, weight in weights:
        if is_lazy(weight):
            raise ModelError(f"weight '{name}' of a lazy layer has no shape yet; run the model once before it is given")
        if weight.is_inference():
            raise ModelError(f"weight '{name}' was made under torch.inference_mode(); build the model outside of it")
        if weight.layout != torch.strided:
            raise ModelError(f"weight '{name}' has the layout {weight.layout}, expected a dense tensor; call .to_dense() on it")
    return weights


def as_arguments(module: nn.Module, batch: Batch) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """The positional and keyword arguments with which ``module`` takes the batch; copies, which its code may write into.

    Raises:
        DataError: not a batch, or an (image, label) pair where the module takes one input.
    """
    tensors = as_tensors(batch)
    if isinstance(batch, Mapping):
        return copies_of((), dict(zip(batch, tensors, strict=True)))
    required = [
        parameter
        for parameter in inspect.signature(module.forward).parameters.values()
        if parameter.default is parameter.empty and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    refuse_labels(tensors, len(required), "batch")
    return copies_of(tensors, {})


def copies_of(args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Copies of the arguments of one call."""
    return tuple(tensor.clone() for tensor in args), {name: tensor.clone() for name, tensor in kwargs.items()}


def run_once(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> bool:
    """Runs the module once on copies, so that a wrong input is reported as such and not as a failed capture.

    Returns whether the module writes into its inputs.

    Raises:
        ModelError: the module fails on the inputs.
    """
    args, kwargs = copies_of(args, kwargs)
    versions = [tensor._version for tensor in (*args, *kwargs.values())]
    shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (*args, *kwargs.values()))
    try:
        with torch.no_grad():
            module(*args, **kwargs)
    except Exception as error:  # anything can be raised by the code of a foreign module
        raise ModelError(
            f"model {type(module).__name__} fails on inputs of shape {shapes}: {first_line(error)}; "
            "give example inputs of the shape and type that it expects"
        ) from error
    return versions != [tensor._version for tensor in (*args, *kwargs.values())]


def _output_names(spec: pytree.TreeSpec, there: list[bool]) -> tuple[str, ...]:
    """The names of the outputs that are ``there``: others are ``None``, as those that only training uses."""
    # The graph of an `torch.fx` module gives its own kind of dict.
    if isinstance(spec.type, type) and issubclass(spec.type, dict) and len(spec.context) == len(there):
        names = [str(key) for key in spec.context]
    elif sum(there) == 1:
        names = ["output"] * len(there)
    else:
        names = [f"output_{index}" for index in range(len(there))]
    return tuple(name for name, one in zip(names, there, strict=True) if one)


def output_tensors(result: Any) -> list[Any]:
    """What a module returned, without its nesting and without ``None``: the outputs of its captured graph."""
    return [value for value in pytree.tree_leaves(result) if value is not None]


def _flatten(graph_module: GraphModule) -> None:
    """Drops the pytree calling convention and the ops that do nothing in inference, in place."""
    graph: Graph = graph_module.graph
    graph.set_codegen(CodeGen())
    graph_module._forward_pre_hooks.clear()  # they check the arguments of the calling convention
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target in _IDENTITIES:
            source = node.args[0]
            assert isinstance(source, Node)
            node.replace_all_uses_with(source)
            graph.erase_node(node)
        elif node.target in _VIEWS:  # without the copies before it, a view may meet a strided tensor
            node.target = torch.ops.aten.reshape.default
    output = graph.output_node()
    output.args = (tuple(output_tensors(output.args[0])),)
    # Only calls are removed: an input that nothing uses is still part of the model's signature.
    graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
    graph_module.delete_all_unused_submodules()
    graph_module.recompile()
