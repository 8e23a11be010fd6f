"""The process a command runs in: devices, memory, signals, pretrained files and noisy libraries."""
