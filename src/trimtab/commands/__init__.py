"""One file per command: each is a face on what the rooms below do, and holds no method."""
