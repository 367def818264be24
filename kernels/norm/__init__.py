"""Kernel family: norm."""
