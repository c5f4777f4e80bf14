"""What charges add up to: ε of a run, the noise for it, and a filter across runs."""
