"""Fault campaigns: a short form in ``make test-all``, the long counts in ``make soak``."""
