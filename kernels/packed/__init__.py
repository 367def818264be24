"""Sequences of several images in one, and attention within their segments."""
