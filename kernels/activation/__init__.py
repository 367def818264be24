"""Kernel family: activation."""
