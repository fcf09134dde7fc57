"""The convolutional blocks, one file each."""
