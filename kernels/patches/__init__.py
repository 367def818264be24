"""Kernel family: patches."""
