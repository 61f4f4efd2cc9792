"""What export writes and import reads: the formats of files, and whole maps."""
