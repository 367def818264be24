"""The kernels: templates that are specialised for one architecture."""
