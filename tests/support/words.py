"""Keys and values of eight bytes, and hash seeds that scatter keys or make them collide."""

SCATTERED = (0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9)
COLLIDING = (1, 0, 0, 0)  # keys of 8 bytes below 2**32 all hash to 0, and are in one bucket


def word(number):
    """Return a number as the eight bytes of a key or of a value."""
    return number.to_bytes(8, "little")
