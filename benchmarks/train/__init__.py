"""How fast teachers and students train."""
