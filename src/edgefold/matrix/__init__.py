"""Many models × formats × precisions: resumable, cached, each cell in a subprocess with caps, here or on a Dask cluster."""
