"""The types of a SharedDict's keys and values: how each is stored.

declared       codec_for(): the codec of a declared type, and the type that a record names
codec          Codec, what is common to all types
records        the JSON by which a schema names a type
keys           keys of type object as bytes, so that equal keys have equal bytes
key_kinds      keys of the standard library's types
structures     ctypes structures
messages       dataclasses and msgspec.Structs
descriptions   what msgspec stores of a class, and which classes can read each other's values
arrays         NumPy's dtypes and Array
rowtypes       the dtypes of an RHashMap's rows
schema         the schema of a dict, and the layout of its entries
"""

from shmrhash._types.arrays import Array as Array
