"""Frames of videos as visual tokens."""
