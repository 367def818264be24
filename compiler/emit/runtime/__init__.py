"""Files copied verbatim into every emitted package."""
