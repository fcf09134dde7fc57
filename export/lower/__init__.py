"""Lowering: how each layer is computed on one runtime, and the channel orders that make it cheap.

`edgefold.export.lower.lower.lower` is the one entry.
"""
