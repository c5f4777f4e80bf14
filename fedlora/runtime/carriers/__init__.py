"""What carries messages in a simulation: one process, or Ray."""
