"""Repeatable measurements: one file per question, all alternatives in one run, compared with the ceiling."""
