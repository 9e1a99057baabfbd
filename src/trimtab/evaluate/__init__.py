"""Evaluate: what an intervention does, to a task's number and to everything else, against controls."""
