"""Settings, and the flags of ``python -m train``. Imports nothing heavy."""
