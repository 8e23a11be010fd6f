"""How much of the work is left when it goes through Ray."""
