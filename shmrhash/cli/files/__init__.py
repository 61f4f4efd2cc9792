"""The files of export and import: their formats, and reading and storing whole maps."""
