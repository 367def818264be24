"""Emission: from a program to Python source."""
