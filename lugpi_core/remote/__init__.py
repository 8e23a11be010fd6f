"""Folders of object stores: their addresses, and the few things that a run does with them."""
