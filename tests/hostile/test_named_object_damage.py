"""Named kinds of damage of maps with objects: each once crashed a process, hung it, or was returned
as a value."""

import contextlib
import json
import mmap
import os
import random
import struct

import msgspec
import numpy as np
import pytest
from support.children import Child
from support.hostile.damage import FIRST_CONTEXT, LENGTH_BITS, checksum
from support.hostile.object_images import DICTS, Sample, body, fill_dict, make_dict
from support.hostile.segment import UPD, Segment, ending_of
from support.words import COLLIDING

import shmrhash
from shmrhash import Kptr, RHashMap, SharedDict, Timer
from shmrhash._types.declared import codec_for

NAMES_OFFSET, OWING_OFFSET = 22 * 8, 21 * 8  # offsets in a context
VALUE = b"a value that stands in no entry, of some class"
RUN = bytes(range(256)) * 80  # five pages
SCHEMA_BYTES_OFFSET, SCHEMA_OFFSET, CHECKED_FROM, CHECKSUM_OFFSET = 140, 2048, 128, 224
DONE_OR_SAID = ("done", "SegmentCorrupt", "LockTimeout", "KeyNotFound")


@pytest.fixture
def damaged_dict(map_name):
    """Return a function that makes one of DICTS and its Segment; no check() follows at the end."""
    with contextlib.ExitStack() as stack:

        def make(kind):
            d = stack.enter_context(make_dict(map_name, kind))
            stack.callback(d.unlink)
            return d, Segment(d.handle)

        yield make


def place_of(segment, content):
    """Return the offset of these bytes in the segment: the last one if a redo buffer has a copy."""
    found = [
        start + at
        for start, part in segment.whole()
        for at in range(0, len(part), 8)
        if part.startswith(content, at)
    ]
    return found[-1]


def reference_to(d, segment, key):
    """Return the offset of the reference to the value of the only entry, whose key is short."""
    return place_of(segment, key.encode().ljust(15, b"\0") + bytes([len(key)])) + 16 + 16


LOOKS = {
    "get": lambda d: d.get("k"),
    "view": lambda d: d.view("k"),
    "items": lambda d: list(d.items()),
    "section": lambda d: d.update_with("k", lambda value: value),
    "exchange": lambda d: d.exchange("k", b""),
    "pop": lambda d: d.pop("k"),
    "popitem": lambda d: d.popitem(),
    "kptr": lambda d: d.handle.kptr_get(d_key(d), 16),
    "parts": lambda d: d.handle._parts(d_key(d)),
}


def d_key(d):
    """Return the only key as bytes of the map."""
    return next(iter(d.handle))


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("index", [1 << 33, 20])
def test_a_reference_to_no_object_ends_in_segment_corrupt(damaged_dict, look, index):
    """H1: a reference leads beyond its class, or to a hole. view() used to hang, kptr_get() to
    return None, and other operations to read the hole, which is SIGBUS if the file system is
    full."""
    d, segment = damaged_dict("str to bytes")
    d["k"] = RUN
    at = reference_to(d, segment, "k")
    assert segment.get(at) & (1 << LENGTH_BITS) - 1 == len(RUN)
    segment.set(at, index << LENGTH_BITS | len(RUN))
    committed = os.stat(segment.path).st_blocks

    assert ending_of(lambda: LOOKS[look](d)) == "SegmentCorrupt"
    assert os.stat(segment.path).st_blocks <= committed + 16  # the child's own page of slots


ODD = 0x5A5A5A5A5A5A  # a key that no other word of a segment equals
LOST = {
    "get": lambda d: d.get(ODD),
    "in": lambda d: ODD in d,
    "deadline": lambda d: d._deadline_ns(ODD),
    "values": lambda d: list(d.values()),
    "pop": lambda d: d.pop(ODD),
    "setdefault": lambda d: d.setdefault(ODD, 1.5),
    "section": lambda d: d.update_with(ODD, lambda value: value),
    "parts": lambda d: d.handle._parts(struct.pack("<q", ODD)),
    "touch": lambda d: d.touch(ODD, ttl=1),
    "timer": lambda d: d.handle.timer_set(struct.pack("<q", ODD), 1),
}


@pytest.mark.parametrize("look", LOST)
def test_entry_in_an_update_by_no_context_ends_in_segment_corrupt(map_name, look):
    """H1: an element's header says that its value is in the redo buffer of a context that does not
    exist."""
    with SharedDict.create(map_name, key=int, value=float, ttl=60, timeout=0.05) as d:
        d[ODD] = 0.625
        segment = Segment(d.handle)
        try:
            segment.set(place_of(segment, struct.pack("<q", ODD)) - 8, UPD | 0x7FFF << 1 | 1)

            waits = look in ("pop", "section")
            ending = ending_of(lambda: LOST[look](d))
            assert ending == ("LockTimeout" if waits else "SegmentCorrupt")
        finally:
            d.unlink()


@pytest.mark.parametrize("length", [16, 20, 254])
@pytest.mark.parametrize("look", ["keys", "items", "popitem", "key"])
def test_key_of_an_impossible_length_ends_in_segment_corrupt(map_name, look, length):
    """H1: the last of a key's 16 bytes says how many of the others count. The bytes after the key
    used to be read, too. With these seeds the damaged key still has its hash."""
    with make_dict(map_name, "str to int", _seeds=COLLIDING) as d:
        d["abc"] = 5
        segment = Segment(d.handle)
        segment.set(place_of(segment, b"abc".ljust(15, b"\0") + b"\3") + 15, length, "B")
        looks = LOOKS | {"keys": list, "key": lambda d: d._key_at(d_key(d))}
        try:
            assert ending_of(lambda: looks[look](d)) == "SegmentCorrupt"
        finally:
            d.unlink()


def test_length_beyond_the_run_is_not_read(damaged_dict):
    """M1: a length beyond the run is not believed; the pages after the run have no memory."""
    d, segment = damaged_dict("str to bytes")
    d["k"] = body(13)
    size = len(d["k"])
    at = reference_to(d, segment, "k")
    segment.set(at, segment.get(at) - size + 16_000)

    assert ending_of(lambda: d["k"]) == "SegmentCorrupt"


def keep_naming(path, stride, seed):
    """Write references, most of which lead to no object, into the names of three contexts."""
    rng = random.Random(seed)
    places = [
        FIRST_CONTEXT + index * stride + NAMES_OFFSET + 8 * slot
        for index in range(3)
        for slot in range(6)
    ]
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        while True:
            for place in places:
                number = rng.choice((0, rng.getrandbits(64), (1 << 34) - 1 << LENGTH_BITS | 40_000))
                memory[place : place + 8] = number.to_bytes(8, "little")


def writes(d, rounds):
    for number in range(rounds):
        with contextlib.suppress(shmrhash.Error):
            d[f"k{number % 7}"] = body(number % 16)
        with contextlib.suppress(shmrhash.Error):
            d.pop(f"k{number % 5}", None)


def test_names_that_another_process_changes_are_read_once(damaged_dict, seed):
    """H1: a name used to be checked and then read again. A process that changed the name in between
    made the reader store beyond the segment."""
    d, segment = damaged_dict("str to bytes")
    d.handle.close()
    d = SharedDict.open(d.name, key=str, value=bytes, timeout=0.001)
    try:
        with Child(keep_naming, segment.path, 320, seed):
            assert ending_of(lambda: writes(d, 4000)) == "done"
    finally:
        d.close()


def test_popitem_of_keys_that_no_lookup_finds_ends(damaged_dict):
    """H1: a walk delivers keys that no lookup finds; popitem() used to hang then."""
    d, segment = damaged_dict("int to float")
    for number in (3, 4):
        d[number] = 0.5
    for number in (3, 4):  # the keys in the elements no longer fit the tags
        place = place_of(segment, struct.pack("<qd", number, 0.5))
        segment.set(place, number + 1000)

    assert ending_of(d.popitem) in ("SegmentCorrupt", "KeyNotFound")


def test_text_that_is_not_utf8_ends_in_segment_corrupt(damaged_dict):
    """H1: reading a str whose bytes are not UTF-8 raises SegmentCorrupt."""
    d, segment = damaged_dict("int to str")
    d[1] = "a text that stands beside its entry"
    segment.set(place_of(segment, b"a text that stands"), 0xFF, "<B")

    assert ending_of(lambda: d[1]) == "SegmentCorrupt"


@pytest.mark.parametrize("damage", [0xFF, 0xC1])
def test_invalid_messages_end_in_segment_corrupt(damaged_dict, damage):
    """H1: reading a dataclass whose bytes are not MessagePack, or have a text that is not UTF-8,
    raises SegmentCorrupt."""
    d, segment = damaged_dict("str to messages")
    d["k"] = Sample("a name of a sample", [0.5])
    place = place_of(segment, msgspec.msgpack.encode(d["k"]))
    segment.set(place + (0 if damage == 0xC1 else 10), damage, "<B")

    assert ending_of(lambda: d["k"]) == "SegmentCorrupt"


def test_invalid_array_ends_in_segment_corrupt(damaged_dict):
    """H1: reading an array whose shape does not fit its bytes raises SegmentCorrupt."""
    d, segment = damaged_dict("int to arrays")
    d[1] = np.arange(7.0) + 0.125
    segment.set(place_of(segment, struct.pack("<d", 0.125)) + 56, 8)

    assert ending_of(lambda: d[1]) == "SegmentCorrupt"


def test_a_key_nested_too_deeply_ends_in_segment_corrupt():
    """H1: the bytes of a key are a tuple in a tuple, 20,000 levels deep."""
    data = b"n"
    for _ in range(20_000):
        data = b"t\xff" + len(data).to_bytes(4, "little") + data

    with pytest.raises(shmrhash.SegmentCorrupt):
        shmrhash._types.keys.decode_key(data)


# ---- the types in the header ----


def write_schema(segment, data):
    with open(segment.path, "r+b") as file:
        os.pwrite(file.fileno(), data.ljust(1536, b"\0"), SCHEMA_OFFSET)
        os.pwrite(file.fileno(), struct.pack("<I", len(data)), SCHEMA_BYTES_OFFSET)
        fields = os.pread(file.fileno(), CHECKSUM_OFFSET - CHECKED_FROM, CHECKED_FROM)
        os.pwrite(file.fileno(), struct.pack("<Q", checksum(fields)), CHECKSUM_OFFSET)


SPIN_LOCK, TIMER, KPTR, REFCOUNT = 1, 2, 3, 4
HEADERS = {  # (offset in the header, format, numbers); a field is its kind and its offset
    "nothing else": (136, "<I", 2),
    "nine fields": (136, "<I", 9),
    "an unknown field": (144, "<II", 77, 0),
    "a field between words": (144, "<II", TIMER, 4),
    "a field beyond the value": (144, "<II", TIMER, 48),
    "two fields in one word": (144, "<IIII", TIMER, 8, KPTR, 8),
    "two timers": (144, "<IIII", TIMER, 0, TIMER, 8),
    "four references": (136, "<10I", 4, 0, KPTR, 0, KPTR, 8, KPTR, 16, KPTR, 24),
    "references, but no objects": (128, "<Q", 0),
    "objects without end": (128, "<Q", 1 << 60),
    "more schema than there is room": (140, "<I", 1 << 20),
    "more elements than can be": (16, "<IIQ", 8, 1 << 21, 1 << 31),
}


@pytest.mark.parametrize("lie", HEADERS)
def test_impossible_header_ends_in_segment_corrupt(map_name, lie):
    """H1: opening a header with right checksums and impossible numbers raises SegmentCorrupt."""
    offset, form, *numbers = HEADERS[lie]
    limits = {"max_entries": 10, "fields": [Timer(0), Kptr(8)], "max_bytes": 1 << 16}
    with RHashMap.create(map_name, key_size=8, value_size=48, **limits) as m:
        try:
            RHashMap.open(map_name).close()
            with open(m._path, "r+b") as file:
                header = bytearray(os.pread(file.fileno(), 4096, 0))
                struct.pack_into(form, header, offset, *numbers)
                struct.pack_into("<Q", header, 88, checksum(header[:88]))
                fields = header[CHECKED_FROM:CHECKSUM_OFFSET]
                struct.pack_into("<Q", header, CHECKSUM_OFFSET, checksum(fields))
                os.pwrite(file.fileno(), header, 0)

            ending = ending_of(lambda: RHashMap.open(map_name))
            assert ending == ("done" if lie == "nothing else" else "SegmentCorrupt")
        finally:
            m.unlink()


def schema(**changed):
    record = {"v": 1, "kind": "SharedDict", "key": "int", "value": "float", "ttl": None}
    return json.dumps(record | changed).encode()


SCHEMAS = {
    "nested": b"[" * 1500,
    "huge struct": schema(value={"struct": "99999999999s"}),
    "no type": schema(value=17),
    "list": schema(key=["int"]),
    "dtype of fields": schema(value={"numpy": [["a"]]}),
    "array without shape": schema(value={"array": "<f8"}),
    "huge dtype": schema(value={"numpy": {"base": "<f8", "shape": [1 << 62, 1 << 62]}}),
    "nested dtype": schema(value={"numpy": [[["a", "b"], [["c", 3]], [1]]]}),
    "other key": schema(key={"struct": "<qq"}),
    "bool key": schema(key="bool"),
    "str key": schema(key="str"),
    "wide value": schema(value={"struct": "<qqq"}),
    "expiring": schema(ttl=5.0),
    "not a ttl": schema(ttl=[]),
}


@pytest.mark.parametrize("declared", [{}, {"key": int, "value": float}], ids=["found", "declared"])
@pytest.mark.parametrize("name", SCHEMAS)
def test_a_schema_of_other_types_ends_in_layout_mismatch(damaged_dict, name, declared):
    """H1: the schema is not JSON, has no types, or has types that do not fit the map's sizes."""
    d, segment = damaged_dict("int to float")
    d[1] = 0.5
    write_schema(segment, SCHEMAS[name])

    assert ending_of(lambda: SharedDict.open(d.name, **declared)) == "LayoutMismatch"


@pytest.mark.parametrize(("key_size", "value_size"), [(4, 8), (16, 8), (8, 4), (8, 16)])
def test_dict_of_types_that_do_not_fit_the_map_is_refused(map_name, key_size, value_size):
    """H1: a dict whose types do not fit the map's sizes is refused. The core used to read 8 bytes
    of 4-byte keys, and to hash 16 bytes of 8-byte keys."""
    with RHashMap.create(
        map_name, key_size=key_size, value_size=value_size, max_entries=10, _schema=schema()
    ) as shared_map:
        shared_map.unlink()
        with pytest.raises(shmrhash.LayoutMismatch):
            shmrhash._core.DictCore(shared_map, (0, None, None), (1, None, None))
        with pytest.raises(shmrhash.LayoutMismatch):
            SharedDict._of(shared_map, shmrhash._types.schema.make_schema(int, float, None))


def test_context_that_owes_too_much_is_settled(damaged_dict):
    """H1: a context owes more pages than the budget has, and names objects that do not exist."""
    d, segment = damaged_dict("str to bytes")
    fill_dict(d, "str to bytes")
    segment.set(FIRST_CONTEXT + OWING_OFFSET, (1 << 40) * 2 + 1)
    for slot in range(6):
        segment.set(FIRST_CONTEXT + NAMES_OFFSET + 8 * slot, (1 << 63) - 1 - slot)

    assert ending_of(lambda: writes(d, 50)) in DONE_OR_SAID
    assert ending_of(d.clear) in DONE_OR_SAID


def test_every_kind_of_dict_has_an_image():
    """A test of the campaign: the dicts that it damages use all codecs of the core."""
    keys = {codec_for(key, "key").kind for key, *_ in DICTS.values()}
    values = {codec_for(value, "value").kind for _, value, *_ in DICTS.values()}

    assert keys == set(range(7)) - {shmrhash._core.KEY_FIXED}  # its keys are the bytes of the entry
    assert values == set(range(8))


def test_a_kptr_to_no_object_ends_in_segment_corrupt(map_name):
    """H1: kptr_get() and kptr_xchg() of a damaged reference raise; they used to return None."""
    key = bytes(8)
    with RHashMap.create(
        map_name, key_size=8, value_size=8, max_entries=10, fields=[Kptr(0)], max_bytes=1 << 20
    ) as shared_map:
        shared_map[key] = bytes(8)
        shared_map.kptr_xchg(key, VALUE, 0)
        segment = Segment(shared_map)
        reference = struct.pack("<Q", 1 << LENGTH_BITS | len(VALUE))
        segment.set(place_of(segment, reference), 1 << 62 | len(VALUE))
        try:
            with pytest.raises(shmrhash.SegmentCorrupt):
                shared_map.kptr_get(key, 0)
            with pytest.raises(shmrhash.SegmentCorrupt):
                shared_map.kptr_xchg(key, None, 0)
        finally:
            shared_map.unlink()
