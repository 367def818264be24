"""The compiler: from a checked architecture to an emitted package."""
