"""Fill the store, one block at a time: generate, encode, write."""
