"""Panels of a study: which value makes which drawing, the words beside it and the table behind it."""
