"""The networks, one file each; `edgefold.models.networks` lists them by name."""
