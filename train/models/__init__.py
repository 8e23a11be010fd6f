"""One model from its settings to its folder."""
