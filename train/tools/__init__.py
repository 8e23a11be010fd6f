"""Evaluate a student, export it to ONNX, search its loss weights."""
