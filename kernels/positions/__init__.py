"""Positions of tokens on several axes."""
