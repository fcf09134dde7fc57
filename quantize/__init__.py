"""Quantization, done once for all formats: one annotation, one calibration, one table of scales.

annotate    which values are integers, and which share parameters
calibrate   ranges from data, by the observers of `observers`; the table of scales
correct     equalization before, bias correction after calibration
insert      the table as quantize/dequantize nodes: the torch reference and what the emitters convert
paired      the float and the quantized network side by side
sensitivity, mixed, drift   where accuracy is lost, which layers to leave float, where runtimes differ
qat         training on, as INT8
"""
