"""Kernel family: linear."""
