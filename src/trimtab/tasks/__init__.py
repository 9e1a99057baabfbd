"""Tasks: examples of a behaviour and the number that measures it, built in or brought along."""
