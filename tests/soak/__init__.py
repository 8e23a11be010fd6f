"""Fault campaigns; ``make soak`` runs them with their long counts."""
