"""Kernel family: rope."""
