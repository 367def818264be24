"""The front end: YAML with positions, to checked models."""
