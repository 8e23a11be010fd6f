"""Generators of many families, tiny, and how fast our loop is beside diffusers' own."""
