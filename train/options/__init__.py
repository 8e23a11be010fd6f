"""The flags of ``python -m train``. Imports nothing heavy."""
