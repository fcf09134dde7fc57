"""ONNX files as PyTorch modules: read as data, checked, and rebuilt op by op; nothing in a file is ever executed."""
