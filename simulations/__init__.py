"""What is run beside the library: benchmarks, recipes, and what makes the embedded model."""
