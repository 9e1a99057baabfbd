"""What locating costs, one file per family; `python -m benchmarks.locate` runs them all."""
