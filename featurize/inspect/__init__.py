"""Whether the cached tokens predict the class."""
