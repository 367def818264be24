"""Kernel family: relative position bias."""
