"""Doubles and small inputs shared by the tests."""
