"""Studies: a behaviour located, changed and tested in stages; their runs on disk, and the index over these."""
