"""The test suite, in the folders of the code it tests."""
