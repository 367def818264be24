"""Positions as sines and cosines that are added to vectors."""
