"""Measurements that anyone can repeat: one file a question, both sides in one run, the ceiling beside the number."""
