"""Speed, memory and correctness of the loss beside what people use instead: ``python -m benchmarks``."""
