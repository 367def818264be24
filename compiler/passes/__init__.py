"""Passes over programs, one file each; their order stands in `vlmspec.compiler.pipeline`."""
