"""Images cut into tiles on a grid that suits their form."""
