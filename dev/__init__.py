"""How the embedded models and the demo corpus were made. Runs from a checkout; not installed."""
