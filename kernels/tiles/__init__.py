"""Kernel family: tiles."""
