"""What a process stands on: devices, memory, signals, pretrained files, and the libraries' noise."""
