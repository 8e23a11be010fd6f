"""What a run will take: FLOPs, memory, hours."""
