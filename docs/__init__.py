"""The documentation, and what turns it into pages."""
