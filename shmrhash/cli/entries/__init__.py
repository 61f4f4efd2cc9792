"""The entries of a map: keys, values and types as people write and read them."""
