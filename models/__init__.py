"""Lightweight convolutional blocks and networks, trained checkpoints, data, training and model sources."""
