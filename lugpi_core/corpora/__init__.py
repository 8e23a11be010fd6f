"""Corpora: the paper's four, the embedded demo, and a user's own texts."""
