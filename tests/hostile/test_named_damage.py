"""Named kinds of damage: each once crashed a process, hung it, or destroyed other memory."""

import contextlib
import struct

import pytest
from support.hostile.images import COLLIDING, SCATTERED, fill
from support.hostile.segment import (
    ALLOCATED,
    BUCKETS,
    CONTEXTS,
    PROCESSES,
    TABLE,
    UPD,
    USABLE,
    Segment,
    ending_of,
)

import shmrhash


@pytest.fixture
def damaged(map_name):
    """Return a function that makes a map and its Segment; the map is not checked at the end."""
    with contextlib.ExitStack() as stack:

        def make(entries, seeds=SCATTERED, **geometry):
            options = {"key_size": 8, "value_size": 8, "max_entries": 4096, "_seeds": seeds}
            shared_map = shmrhash.RHashMap.create(map_name, timeout=0.05, **(options | geometry))
            stack.callback(shared_map.close)
            stack.callback(shared_map.unlink)
            fill(shared_map, entries)
            return shared_map, Segment(shared_map)

        yield make


KEYS = b"".join(number.to_bytes(8, "little") for number in range(20))
USES = {
    "lookup": lambda m: [m.lookup(KEYS[i : i + 8]) for i in range(0, 160, 8)],
    "contains": lambda m: [KEYS[i : i + 8] in m for i in range(0, 160, 8)],
    "update": lambda m: [m.update(KEYS[i : i + 8], bytes(8)) for i in range(0, 160, 8)],
    "lookup_many": lambda m: m.lookup_many(KEYS),
    "delete_many": lambda m: m.delete_many(KEYS),
    "iterate": lambda m: list(m.items()),
    "take": lambda m: m.lookup_and_delete_batch(None, 20),
    "section": lambda m: [m.update_with(KEYS[i : i + 8], bytes) for i in range(0, 160, 8)],
}
each_use = pytest.mark.parametrize("use", USES.values(), ids=USES)


@each_use
def test_levels_that_lead_nowhere_end_in_segment_corrupt(damaged, use):
    """H1: no bucket has a level; a search by levels ends at once."""
    shared_map, segment = damaged(0)
    for bucket in segment.buckets():
        segment.set(bucket, 0)

    assert ending_of(lambda: use(shared_map)) == "SegmentCorrupt"


@each_use
def test_levels_that_lead_in_circles_end_in_segment_corrupt(damaged, use):
    """H1: each bucket's level leads to a child without a level, which leads back."""
    shared_map, segment = damaged(0)
    for bucket in segment.buckets():
        segment.set(bucket, 9 << 16)

    assert ending_of(lambda: use(shared_map)) == "SegmentCorrupt"


IN_CIRCLES = {use: USES[use] for use in ("lookup", "contains", "update", "lookup_many", "iterate")}
IN_CIRCLES |= {"take": USES["take"]}


@pytest.mark.parametrize("use", IN_CIRCLES)
def test_circular_chain_ends_in_segment_corrupt(damaged, use):
    """H1: the last slot of a full bucket links to a line that links to itself."""
    shared_map, segment = damaged(20, COLLIDING, max_entries=64)
    bucket = segment.buckets()[0]
    link = segment.get(bucket + 60, "<I")
    (line,) = (
        start + at
        for start, content in segment.pages()
        for at in range(0, 4096, 64)
        if start > bucket and struct.unpack_from("<I", content, at + 60)[0] == link + 1
    )
    segment.set(line + 60, link, "<I")

    assert ending_of(lambda: IN_CIRCLES[use](shared_map)) == "SegmentCorrupt"


@pytest.mark.parametrize("header", [UPD, UPD | 0x7FFF << 1 | 1])
@pytest.mark.parametrize("use", ["lookup", "lookup_many", "iterate"])
def test_update_by_no_context_ends_in_segment_corrupt(damaged, header, use):
    """H1: an element's header says that its value is in the redo buffer of no existing context."""
    shared_map, segment = damaged(1)
    key, value = (0).to_bytes(8, "little"), b"\x5a" * 8
    shared_map[key] = value
    (element,) = (
        start + content.index(key + value) - 8
        for start, content in segment.pages()
        if key + value in content
    )
    segment.set(element, header)

    assert ending_of(lambda: USES[use](shared_map)) == "SegmentCorrupt"


@pytest.mark.parametrize("region", [PROCESSES, CONTEXTS, BUCKETS])
@pytest.mark.parametrize("look", ["_processes", "_facts", "_check", "check", "info", "freeze"])
def test_watermark_beyond_its_region_is_not_believed(damaged, region, look):
    """H1: operations do not believe a watermark that is damaged after the header was examined."""
    shared_map, segment = damaged(10)
    segment.set(segment.region(region, USABLE), 1 << 44)

    assert ending_of(getattr(shared_map, look)) in ("done", "SegmentCorrupt", "LockTimeout")


def test_clear_of_a_segment_with_countless_buckets_ends_in_time(damaged):
    """H1: the table word is damaged after attaching; clear() does not visit that many buckets."""
    shared_map, segment = damaged(10)
    segment.set(TABLE, (1 << 48) - 1 << 16)

    assert ending_of(shared_map.clear) in ("done", "SegmentCorrupt")


def test_info_of_a_segment_without_buckets_has_a_load(damaged):
    """H1: the table word is damaged after attaching; info() does not divide by zero."""
    shared_map, segment = damaged(10)
    segment.set(TABLE, 0)

    assert ending_of(shared_map.info) == "done"


def test_release_of_buckets_frees_no_memory_beyond_their_region(damaged):
    """H1: a release frees no memory beyond the region, whatever its `allocated` says."""
    shared_map, segment = damaged(20_000, max_entries=30_000)
    segment.set(segment.region(BUCKETS, ALLOCATED), 1 << 40)

    for number in range(100, 20_000):
        del shared_map[number.to_bytes(8, "little")]

    for number in range(100):
        key = number.to_bytes(8, "little")
        assert shared_map[key] == key


def test_section_that_cannot_delete_its_key_is_abandoned(damaged):
    """H1: the bucket is held by a context without an owner; the section is abandoned."""
    shared_map, segment = damaged(10)
    key = (3).to_bytes(8, "little")

    def delete_in_section():
        with shared_map.locked(key) as section:
            for bucket in segment.buckets():
                segment.set(bucket, segment.get(bucket) | 9 << 1 | 1)
            section.delete()

    assert ending_of(delete_in_section) == "LockTimeout"
    assert shared_map.lookup(key, shmrhash.BPF_F_LOCK) == key


FIRST_CONTEXT = 4096 + 1024 * 64  # follows the header and the process slots
CONTEXT_STRIDE = 320  # 34 words and a value, rounded up to 64 bytes
ELEMENT, LINE_STASH, OWING = 32, 56, 168  # what an operation may have to give back


@pytest.mark.parametrize("word", [ELEMENT, LINE_STASH, OWING])
def test_read_only_handle_gives_nothing_back(damaged, word):
    """H1: a read-only handle's context claims to owe an element, a line or pages; it frees
    nothing."""
    shared_map, segment = damaged(10)
    assert segment.get(FIRST_CONTEXT) == 1  # the creator has the first process slot
    end = FIRST_CONTEXT + segment.get(segment.region(CONTEXTS, USABLE))

    def read():
        with shmrhash.RHashMap.open(shared_map.name, read_only=True) as reader:
            for _ in range(3):
                for context in range(FIRST_CONTEXT, end - CONTEXT_STRIDE + 1, CONTEXT_STRIDE):
                    segment.set(context + word, 0x3C)
                reader.lookup(KEYS[:8])
                list(reader.items())
                reader.check()

    assert ending_of(read) in ("done", "SegmentCorrupt")
