"""Networks, losses, the optimizer, the loop, checkpoints, several processes."""
