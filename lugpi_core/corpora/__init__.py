"""Corpora: the paper's four, the embedded demo, and your own files."""
