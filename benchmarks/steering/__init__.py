"""What steering costs, and what it does: one file for speed, mixed batches and tables; `python -m benchmarks.steer`."""
