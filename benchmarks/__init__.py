"""What is measured, and against what: each module is a command, `python -m benchmarks.NAME`, and prints one table."""
