"""The trained networks that ship with Edgefold, each with the recipe that made it, and a slice of their data set.

A checkpoint is ``NAME.safetensors`` (effective weights only, see `edgefold.models.packing`) and ``NAME.json`` (a `Recipe`).
"""
