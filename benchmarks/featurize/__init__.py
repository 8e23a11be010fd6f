"""How fast images become tokens."""
