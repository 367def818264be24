"""Kernel family: cross-attention."""
