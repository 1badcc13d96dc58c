"""Optimizers, learning rates and gradient clipping."""
