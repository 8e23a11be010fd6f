"""Which distinct images a corpus needs, with which seeds, into which columns."""
