"""Reports about a program: accounting, trees, fusion."""
