"""Speed, memory and accuracy of the loss next to the alternatives: ``python -m benchmarks``."""
