"""From a network to files: capture, fold, lower, emit, verify.

capture    a module as one ATen graph
fold       every linear convolution as one conv, by proof, probing and check
lower      the form of each layer for one format, precision and device; channel orders
passes     one graph rewrite a file
emitters   ONNX, TFLite, ExecuTorch
inspect    what a runtime makes of a file
verify, drift   the files against torch, and against each other
"""
