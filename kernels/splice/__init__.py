"""Kernel family: splice."""
