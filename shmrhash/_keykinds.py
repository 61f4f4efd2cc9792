"""The name by which keys in segments call made_of_fields(): part of their bytes, so it stays."""

from shmrhash._types.keys import made_of_fields as made_of_fields
