"""Which function translates which op: one line an op."""

from __future__ import annotations

from typing import Final

import torch
import torch.nn.functional as F

from edgefold.models.from_onnx import elementwise as e
from edgefold.models.from_onnx import layers, pools, reductions, resize, shapes
from edgefold.models.from_onnx.op import Handler

HANDLERS: Final[dict[str, Handler]] = {
    # layers
    "BatchNormalization": layers.batch_norm,
    "Conv": layers.conv,
    "ConvTranspose": layers.conv_transpose,
    "Gemm": layers.gemm,
    "InstanceNormalization": layers.instance_norm,
    "LayerNormalization": layers.layer_norm,
    "MatMul": layers.matmul,
    "PRelu": layers.prelu,
    # pools and resizing
    "AveragePool": pools.average_pool,
    "GlobalAveragePool": pools.global_average_pool,
    "GlobalMaxPool": pools.global_max_pool,
    "MaxPool": pools.max_pool,
    "Resize": resize.resize,
    "Upsample": resize.resize,
    # activations
    "Clip": e.clip,
    "Elu": e.elu,
    "Erf": e.plain(torch.erf),
    "Exp": e.plain(torch.exp),
    "Gelu": e.gelu,
    "HardSigmoid": e.hard_sigmoid,
    "HardSwish": e.plain(F.hardswish),
    "LeakyRelu": e.leaky_relu,
    "LogSoftmax": e.softmax(F.log_softmax),
    "Mish": e.plain(F.mish),
    "Relu": e.plain(F.relu),
    "Sigmoid": e.plain(torch.sigmoid),
    "Softmax": e.softmax(F.softmax),
    "Softplus": e.plain(F.softplus),
    "Softsign": e.plain(F.softsign),
    "Tanh": e.plain(torch.tanh),
    # arithmetic
    "Abs": e.plain(torch.abs),
    "Add": e.add,
    "And": e.binary(torch.logical_and),
    "Cast": e.cast,
    "Ceil": e.plain(torch.ceil),
    "Div": e.div,
    "Equal": e.binary(torch.eq),
    "Floor": e.plain(torch.floor),
    "Greater": e.binary(torch.gt),
    "GreaterOrEqual": e.binary(torch.ge),
    "Less": e.binary(torch.lt),
    "LessOrEqual": e.binary(torch.le),
    "Log": e.plain(torch.log),
    "Max": e.variadic(torch.maximum),
    "Mean": e.mean,
    "Min": e.variadic(torch.minimum),
    "Mod": e.mod,
    "Mul": e.binary(torch.mul),
    "Neg": e.plain(torch.neg),
    "Not": e.plain(torch.logical_not),
    "Or": e.binary(torch.logical_or),
    "Pow": e.power,
    "Reciprocal": e.plain(torch.reciprocal),
    "Sqrt": e.plain(torch.sqrt),
    "Sub": e.binary(torch.sub),
    "Sum": e.variadic(torch.add),
    "Where": e.where,
    # reductions
    "ArgMax": reductions.argument(torch.argmax),
    "ArgMin": reductions.argument(torch.argmin),
    "ReduceL1": reductions.reduction(reductions.absolute),
    "ReduceL2": reductions.reduction(reductions.euclidean),
    "ReduceMax": reductions.reduction(torch.amax),
    "ReduceMean": reductions.reduction(torch.mean),
    "ReduceMin": reductions.reduction(torch.amin),
    "ReduceProd": reductions.reduction(reductions.product),
    "ReduceSum": reductions.reduction(torch.sum),
    "ReduceSumSquare": reductions.reduction(reductions.squares),
    # shapes
    "Concat": shapes.concat,
    "Constant": shapes.constant,
    "ConstantOfShape": shapes.constant_of_shape,
    "DepthToSpace": shapes.depth_to_space,
    "Dropout": e.identity,
    "Expand": shapes.expand,
    "Flatten": shapes.flatten,
    "Gather": shapes.gather,
    "Identity": e.identity,
    "Pad": shapes.pad,
    "Range": shapes.range_of,
    "Reshape": shapes.reshape,
    "Shape": shapes.shape_of,
    "Size": shapes.size_of,
    "Slice": shapes.slice_,
    "SpaceToDepth": shapes.space_to_depth,
    "Split": shapes.split,
    "Squeeze": shapes.squeeze,
    "Tile": shapes.tile,
    "Transpose": shapes.transpose,
    "Unsqueeze": shapes.unsqueeze,
}
