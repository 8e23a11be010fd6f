"""What is in a store, and whether its tokens predict the class."""
