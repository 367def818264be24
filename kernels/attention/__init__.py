"""Kernel family: attention."""
