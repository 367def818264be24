"""Attention to compressed keys and values."""
