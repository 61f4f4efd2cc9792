"""Images of maps with objects: SharedDicts of several types, and a map with every special field.

They have small and large objects of most classes, long keys, expired entries, views that were held
(pins, retired objects), and chains with lines. Some have pickled keys and values, which a user of
an image does not unpickle (object_use.py).
"""

import contextlib
import ctypes
import dataclasses
import math
from unittest import mock

import numpy as np

import shmrhash
from shmrhash import Array, Kptr, Refcount, RHashMap, SharedDict, SpinLock, Timer
from shmrhash._types.schema import make_schema
from support import stepping
from support.hostile import images
from support.hostile.images import COLLIDING, SCATTERED, image_of

MAX_BYTES = 1 << 20  # so small that memory beyond a class is mostly beyond the segment
SIZES = (0, 1, 8, 40, 88, 120, 184, 248, 500, 1000, 2000, 4088, 4089, 9000, 20_000, 70_000)
PAST_NS = 1  # a deadline that has passed


@dataclasses.dataclass
class Sample:
    name: str
    weights: list[float]


class Pair(ctypes.Structure):
    _fields_ = (("number", ctypes.c_int64), ("ratio", ctypes.c_double))


def text(number):
    """Return a key: short ones are in the element, long ones are objects."""
    return f"key {number}" if number % 3 else f"a key of more than fifteen bytes, {number}"


def body(number):
    """Return bytes whose size is in one of the classes of objects."""
    size = SIZES[number % len(SIZES)]
    return (b"%08d" % number * (size // 8 + 1))[:size]


# By kind: the types of key and value, the ttl, the functions for key and value number n.
DICTS = {
    "str to bytes": (str, bytes, math.inf, text, body),
    "str to int": (str, int, 60.0, text, int),
    "int to str": (int, str, None, int, lambda n: body(n).decode()),
    "int to float": (int, float, None, int, float),
    "bool to bool": (bool, bool, math.inf, lambda n: n % 2 == 0, lambda n: n % 3 == 0),
    "int to arrays": (int, Array("<f8"), None, int, lambda n: np.arange(len(body(n)) / 8)),
    "float to pairs": (float, "<qd", 60.0, float, lambda n: (n, n / 2)),
    "bytes to records": (bytes, np.dtype("<i4,<f8"), None, lambda n: text(n).encode(), None),
    "str to structures": (str, Pair, None, text, lambda n: Pair(n, n / 2)),
    "str to messages": (str, Sample, None, text, lambda n: Sample(text(n), [0.5] * (n % 700))),
    "object to object": (object, object, math.inf, None, None),
}
KEYS = {"object to object": lambda n: (n, text(n), frozenset([n])) if n % 4 else Sample}
VALUES = {
    "bytes to records": lambda n: np.array((n, n / 2), "<i4,<f8")[()],
    "object to object": lambda n: {"number": n, "body": body(n)},
}


def key_of(kind, number):
    return (DICTS[kind][3] or KEYS[kind])(number)


def value_of(kind, number):
    return (DICTS[kind][4] or VALUES[kind])(number)


@dataclasses.dataclass(frozen=True)
class ObjectImage(images.Image):
    """An image of a dict of a kind of DICTS, or of a map with special fields (kind is "map")."""

    kind: str = "map"
    max_bytes: int = 0


def object_image_of(name, shared_map, kind):
    plain = image_of(name, shared_map)
    return ObjectImage(**plain.__dict__, kind=kind, max_bytes=shared_map.max_bytes)


# ---- maps ----

FIELDS = (SpinLock(0), Kptr(8), Timer(16), Kptr(24), Refcount(32))
VALUE_SIZE = 48


def make_map(name, **options):
    geometry = {"key_size": 8, "value_size": VALUE_SIZE, "max_entries": 300, "_seeds": SCATTERED}
    geometry |= {"fields": FIELDS, "max_bytes": MAX_BYTES}
    with mock.patch.object(shmrhash._creation, "_depot_count", return_value=2):
        return RHashMap.create(name, **(geometry | options))


def fill_map(shared_map):
    key = ObjectImage("", 8, VALUE_SIZE, 0, ()).key
    for number in range(60):
        shared_map[key(number)] = bytes(VALUE_SIZE)
        shared_map.kptr_xchg(key(number), body(number), 8)
        if number % 2:
            shared_map.kptr_xchg(key(number), body(number + 5), 24)
        if number % 7 == 0:
            shared_map.timer_set(key(number), PAST_NS)
    for number in range(40, 60):
        shared_map.pop(key(number), None)


def make_dict(name, kind, **options):
    """Return a dict with the seeds and sizes that a corpus needs, whatever the number of CPUs."""
    key, value, ttl, *_ = DICTS[kind]
    schema = make_schema(key, value, ttl)
    geometry = {"max_entries": 400, "_seeds": SCATTERED}
    if schema.has_objects:
        geometry["max_bytes"] = MAX_BYTES
    with mock.patch.object(shmrhash._creation, "_depot_count", return_value=2):
        handle = RHashMap.create(
            name,
            key_size=schema.key.size,
            value_size=schema.value_size,
            fields=schema.fields,
            _schema=schema.to_bytes(),
            **(geometry | options),
        )
    return SharedDict._of(handle, schema)


def open_dict(name, kind):
    return SharedDict._of(RHashMap.open(name), make_schema(*DICTS[kind][:3]))


def fill_dict(d, kind, upto=50, down_to=30):
    """Insert, replace and delete entries; let some expire if the kind has a ttl."""
    for number in range(upto):
        d[key_of(kind, number)] = value_of(kind, number)
    for number in range(0, upto, 5):
        d[key_of(kind, number)] = value_of(kind, number + 3)
    if DICTS[kind][2] is not None:
        for number in range(0, upto, 4):
            d._put(key_of(kind, number), value_of(kind, number), 0, PAST_NS)
    for number in range(down_to, upto):
        d.pop(key_of(kind, number), None)


def viewed(d, kind):
    """Return views that pin objects: of a value, of a replaced value, and of a deleted one."""
    if not isinstance(value_of(kind, 1), (bytes, str, np.ndarray)):
        return []
    views = [d.view(key_of(kind, number)) for number in (1, 2, 3)]
    d[key_of(kind, 2)] = value_of(kind, 7)
    d.pop(key_of(kind, 3), None)
    return views


@contextlib.contextmanager
def live_object(state, name):
    """Return a map in one of OBJECT_STATES, and its kind."""
    kind, _, how = state.partition("; ")
    options = {"_seeds": COLLIDING, "max_entries": 60} if how == "chained" else {}
    if kind == "map":
        with make_map(name, **options) as shared_map:
            try:
                fill_map(shared_map)
                yield shared_map, kind
            finally:
                shared_map.unlink()
        return
    with make_dict(name, kind, **options) as d:
        try:
            if how != "empty":
                fill_dict(d, kind, 60 if how == "chained" else 50)
            views = viewed(d, kind) if how == "viewed" else []
            yield d.handle, kind
            del views
        finally:
            d.unlink()


OBJECT_STATES = ["map", *DICTS]
OBJECT_STATES += ["str to bytes; viewed", "int to arrays; viewed", "int to str; viewed"]
OBJECT_STATES += ["str to bytes; empty", "int to str; chained", "map; chained"]


def object_at_rest(state, name):
    """Return the image of one of OBJECT_STATES; with "; section", a section is open in it."""
    with (
        live_object(state.removesuffix("; section"), name) as (shared_map, kind),
        contextlib.ExitStack() as stack,
    ):
        if state.endswith("; section"):
            if kind == "map":
                stack.enter_context(shared_map.locked((9).to_bytes(8, "little")))
            else:
                d = stack.enter_context(open_dict(name, kind))
                stack.enter_context(d.locked(key_of(kind, 9)))
        return object_image_of(state, shared_map, kind)


OBJECTS_AT_REST = [*OBJECT_STATES, "map; section", "str to bytes; section"]


# ---- in the middle of an operation ----


def stores(d, kind):
    for number in (6, 9, 100, 101):
        d[key_of(kind, number)] = value_of(kind, number + 1)


def deletes(d, kind):
    for number in (6, 9, 10):
        d.pop(key_of(kind, number), None)


def clears(d, kind):
    d.clear()


def steps(d, kind):
    d.update_with(key_of(kind, 6), lambda value: value)
    d.exchange(key_of(kind, 9), value_of(kind, 13))
    if kind == "str to bytes":
        view = d.view(key_of(kind, 9))
        d[key_of(kind, 9)] = value_of(kind, 15)
        del view
        d.expire()


OBJECT_OPERATIONS = {
    "str to bytes, storing": stores,
    "str to bytes, deleting": deletes,
    "str to bytes, clearing": clears,
    "str to bytes, stepping": steps,
    "int to str; chained, storing": stores,
    "int to str; chained, clearing": clears,
    "int to str, deleting": deletes,
}


def objects_in_the_middle(what, name, sample, seed):
    """Return images of a dict whose only writer was killed inside an operation."""
    with live_object(what.partition(", ")[0], name) as (shared_map, kind):

        def prepare():
            d = open_dict(name, kind)
            d.get(key_of(kind, 1))
            return d

        def operate(d):
            OBJECT_OPERATIONS[what](d, kind)

        segment = stepping.Segment(shared_map._path)
        for crash in stepping.crash_states(prepare, operate, segment, sample=sample, seed=seed):
            yield object_image_of(f"{what}, {crash.n} of {crash.total}", shared_map, kind)
