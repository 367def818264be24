"""Kernel family: spatial."""
