"""Private steps: gradients of each example apart, clipped, summed, noised and checked."""
