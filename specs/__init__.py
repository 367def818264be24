"""The shipped architectures and parts (YAML files; this file makes them package data)."""
