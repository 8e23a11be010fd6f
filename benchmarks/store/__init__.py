"""How fast tokens are written and read."""
