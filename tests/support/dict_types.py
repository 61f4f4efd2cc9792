"""Classes that the tests declare as types; spawned children import them from here."""

import ctypes
import dataclasses


class Packed(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("number", ctypes.c_int32), ("ratio", ctypes.c_double), ("name", ctypes.c_char * 5))


class Gapped(ctypes.Structure):
    _fields_ = (("small", ctypes.c_int8), ("ratio", ctypes.c_double))


class Outer(ctypes.Structure):
    _fields_ = (("inner", Packed * 2), ("count", ctypes.c_uint16))


class Either(ctypes.Union):
    _fields_ = (("number", ctypes.c_uint64), ("raw", ctypes.c_uint8 * 8))


class Address(ctypes.Structure):
    _fields_ = (("text", ctypes.c_char_p),)


class Deep(ctypes.Structure):
    _fields_ = (("pointers", ctypes.POINTER(ctypes.c_int) * 2),)


@dataclasses.dataclass
class Sample:
    name: str
    weights: list[float]
    label: str | None = None


@dataclasses.dataclass(frozen=True)
class Place:
    street: str
    number: int


def fields_of(structure):
    """Return the fields of a structure, for comparisons."""
    return bytes(structure)
