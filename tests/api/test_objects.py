"""Maps with objects and special fields: damage that check() finds, the budget, memory (M1, C1)."""

import mmap
import os
import struct

import pytest

import shmrhash
from shmrhash import Kptr, Refcount, RHashMap, SegmentCorrupt, SharedDict, Timer, _core


@pytest.fixture
def words(map_name):
    """A SharedDict of bytes to bytes."""
    with SharedDict(map_name, key=bytes, value=bytes, max_entries=1000, max_bytes=1 << 22) as made:
        yield made
    shmrhash.unlink(map_name)


def facts(words):
    return words.info()["objects"]


def objects_offset(handle):
    """Return where the segment's objects begin: at the end of an equal map without objects."""
    return _core.segment_bytes(
        handle.key_size, handle.value_size, handle.max_entries, handle.info()["depots"]
    )


@pytest.fixture
def patch(words):
    """Return a function that writes words into the segment without the map's knowledge."""
    path = words.info()["path"]

    def write(offset, *numbers):
        with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
            struct.pack_into(f"<{len(numbers)}Q", memory, offset, *numbers)

    return write


@pytest.mark.parametrize(("more", "said"), [(7, "7"), (-2, "-2")])
def test_check_finds_a_wrong_budget(words, patch, more, said):
    """M1: check() counts the pages in use, and compares their number with the budget."""
    words[b"a"] = bytes(5000)
    words.check()
    pages = facts(words)["bytes_committed"] // mmap.PAGESIZE
    patch(objects_offset(words.handle), pages + more << 16)

    with pytest.raises(SegmentCorrupt, match=f"the budget of objects counts {said} pages too many"):
        words.check()


def test_check_finds_an_object_without_a_reference(words, patch):
    """C1: check() looks for the reference to every object."""
    words[b"a"] = bytes(100)
    words.check()
    handle = words.handle
    where = handle.info()["path"]
    with open(where, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as memory:
        ref = struct.pack("<Q", 1 << 30 | 100)
        at = memory.find(ref, 0, objects_offset(handle))
        assert at > 0
    patch(at, 0)

    with pytest.raises(SegmentCorrupt, match="is lost, or named twice"):
        words.check()


@pytest.mark.parametrize(
    "size",
    [
        *(0, 1, 7, 8, 9, 56, 57, 248, 249, 280, 281, 4087, 4088, 4089, 4600, 4601),
        *(32_760, 32_761, 36_800, 36_801, 65_472, 65_473, 100_000),
    ],
)
def test_values_at_the_edges_of_size_classes_come_back(words, size):
    """R2: every byte of a value comes back, also at the edges of size classes and runs."""
    value = os.urandom(size)

    words[b"key"] = value

    assert words[b"key"] == value
    assert bytes(words.view(b"key")) == value
    words.check()


def test_max_bytes_is_a_hard_limit_at_which_nothing_is_lost(words):
    """M1: an operation that would exceed max_bytes changes nothing; its error has the limit."""
    stored = {}

    def fill():
        for number in range(1000):
            key, value = b"%d" % number, os.urandom(20_000)
            words[key] = value
            stored[key] = value

    with pytest.raises(shmrhash.OutOfMemory, match=r"max_bytes=4194304 .* more are needed"):
        fill()
    assert dict(words.items()) == stored
    assert facts(words)["bytes_committed"] <= 1 << 22
    words.check()
    with pytest.raises(MemoryError):
        words[b"0"] = bytes(1 << 22)
    assert words[b"0"] == stored[b"0"]
    words.clear()
    words[b"large"] = bytes(3 << 20)
    words.check()


def test_memory_of_a_run_is_released_at_once(words):
    """M1: a page run is returned to the system when its object is freed."""
    words[b"a"] = b"x"
    before = os.stat(words.info()["path"]).st_blocks
    words[b"run"] = bytes(2 << 20)
    assert os.stat(words.info()["path"]).st_blocks - before >= 4096

    del words[b"run"]

    assert os.stat(words.info()["path"]).st_blocks - before <= 64
    assert facts(words)["count"] == 1
    words.check()


def test_freed_memory_is_used_by_another_size_class(words):
    """M1: all classes share one budget."""
    for size in (100, 1000, 3000, 20_000, 300_000):
        for number in range(3 * (1 << 20) // (size + 100) // 2):
            words[b"%d" % number] = bytes(size)
            if number > 900:
                break
        words.clear()
        words.check()
    assert facts(words)["bytes_in_use"] == facts(words)["count"] == 0


def test_a_view_keeps_its_object(words):
    """R2: a view shows the same bytes whatever happens to its key; its end frees the object."""
    first = os.urandom(50_000)
    words[b"key"] = first
    view = words.view(b"key")
    assert view.readonly

    words[b"key"] = os.urandom(60_000)
    del words[b"key"]
    for number in range(20):
        words[b"%d" % number] = bytes(50_000)

    assert view == first
    assert facts(words)["pinned"] == 1
    words.check()
    del view
    assert facts(words)["pinned"] == 0
    words.clear()
    words.check()
    assert facts(words)["count"] == 0


def test_a_view_outlives_its_handle(map_name):
    """H1: a closed dict stays mapped as long as it has views."""
    with SharedDict(map_name, key=str, value=bytes, max_entries=10) as made:
        made["a"] = b"x" * 10_000
        view = made.view("a")
        with SharedDict.open(map_name) as other:
            made.close()
            other["a"] = b"y" * 10_000
            assert view == b"x" * 10_000
            assert other.info()["objects"]["pinned"] == 1
            del view
            other.check()
            assert other.info()["objects"] | {"pinned": 0, "count": 1} == other.info()["objects"]
    shmrhash.unlink(map_name)


def test_raw_copies_have_no_references_in_them(words):
    """The bytes of special fields are neither read nor written from outside, as in the kernel."""
    words[b"key"] = b"value"
    handle = words.handle
    (raw,) = handle

    assert handle[raw] == bytes(16)
    assert list(handle.values()) == [bytes(16)]
    assert handle.lookup_batch(None, 1).values[0].tobytes() == bytes(16)
    handle[raw] = b"\xff" * 16  # this resets the special fields and frees their object

    assert handle[raw] == bytes(16)
    assert facts(words)["count"] == 0
    words.check()
    with pytest.raises(shmrhash.InvalidArgument, match="special"):
        handle.exchange(raw, bytes(16))
    with pytest.raises(shmrhash.InvalidArgument, match="special"):
        handle.compare_and_swap(raw, bytes(16), bytes(16))
    with pytest.raises(shmrhash.InvalidArgument, match="special"):
        handle.add(raw, 1)


def test_a_raw_section_leaves_special_fields_alone(map_name):
    """L1: a section stores the bytes around the special fields."""
    with RHashMap.create(
        map_name, key_size=8, value_size=24, max_entries=10, fields=[Timer(0), Kptr(8)]
    ) as handle:
        handle[b"k" * 8] = b"\xff" * 24
        with handle.locked(b"k" * 8) as value:
            assert bytes(value) == bytes(16) + b"\xff" * 8
            value[:] = b"\x01" * 24

        assert handle[b"k" * 8] == bytes(16) + b"\x01" * 8
        assert handle.pop(b"k" * 8) == bytes(16) + b"\x01" * 8
        handle.check()
        handle.unlink()


def test_insertions_are_locked_out_while_a_map_is_cleared(map_name):
    """While a map is cleared, insertions are EBUSY, as in the kernel; updates and deletions
    work."""
    with RHashMap.create(map_name, key_size=8, value_size=8, max_entries=10) as handle:
        handle[b"a" * 8] = b"1" * 8
        with open(handle.info()["path"], "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
            struct.pack_into("<Q", memory, 112, 4095 << 1 | 1)  # clearing: held by a living process
            with pytest.raises(shmrhash.MapBusy, match="being cleared"):
                handle[b"b" * 8] = b"2" * 8
            handle[b"a" * 8] = b"3" * 8
            del handle[b"a" * 8]
            struct.pack_into("<Q", memory, 112, 0)
        handle[b"b" * 8] = b"2" * 8
        handle.check()
        handle.unlink()


def test_schema_and_fields_of_a_closed_map_raise_map_closed(map_name):
    """H1: reading schema or fields of a closed map raises MapClosed."""
    handle = RHashMap.create(map_name, key_size=8, value_size=8, max_entries=10)
    handle.unlink()
    handle.close()
    with pytest.raises(shmrhash.MapClosed):
        _ = handle.schema
    with pytest.raises(shmrhash.MapClosed):
        handle._fields()


PAIR = b"k" * 8
BOTH = {"key_size": 8, "value_size": 32, "max_entries": 100}


@pytest.fixture
def special(map_name):
    """A map with a Timer at 0, a Kptr at 8 and a Refcount at 16, and 8 bytes more."""
    fields = [Timer(0), Kptr(8), Refcount(16)]
    with RHashMap.create(map_name, fields=fields, max_bytes=1 << 20, **BOTH) as made:
        yield made
        made.check()
    shmrhash.unlink(map_name)


def shown(count, data):
    """Return a value as copies show it: without deadline and reference."""
    return bytes(16) + struct.pack("<Q", count) + data


def test_a_kptr_is_exchanged_and_freed_with_its_element(special):
    """Storing a Kptr returns the previous object, like bpf_kptr_xchg; deletion frees the last
    one."""
    special[PAIR] = b"\xff" * 32
    assert special[PAIR] == shown(1, b"\xff" * 8)
    assert special.kptr_get(PAIR, 8) is None

    assert special.kptr_xchg(PAIR, b"first", 8) is None
    assert special.kptr_xchg(PAIR, bytes(20_000), 8) == b"first"
    assert special.kptr_get(PAIR, 8) == bytes(20_000)
    assert special[PAIR] == shown(1, b"\xff" * 8)
    assert special.info()["objects"]["count"] == 1
    assert special.kptr_xchg(PAIR, None, 8) == bytes(20_000)
    assert special.info()["objects"]["count"] == 0
    special.kptr_xchg(PAIR, b"last", 8)
    special.check()
    del special[PAIR]

    assert special.info()["objects"]["count"] == 0
    with pytest.raises(KeyError):
        special.kptr_xchg(PAIR, b"x", 8)
    with pytest.raises(shmrhash.InvalidArgument, match="no Kptr at offset 16"):
        special.kptr_get(PAIR, 16)


def test_an_update_frees_the_old_objects_and_resets_special_fields(special):
    """An update copies the new value and then frees the old value's fields, as in the kernel."""
    special[PAIR] = bytes(32)
    special.kptr_xchg(PAIR, b"object", 8)
    assert special.add(PAIR, 3, offset=16) == 4

    special[PAIR] = b"\x01" * 32

    assert special.kptr_get(PAIR, 8) is None
    assert special[PAIR] == shown(1, b"\x01" * 8)
    assert special.info()["objects"]["count"] == 0
    special.add(PAIR, 1, offset=24)
    with special.locked(PAIR) as value:
        value[24:32] = b"section!"
    assert special[PAIR] == shown(1, b"section!")


def expired(special):
    special[PAIR] = bytes(32)
    special.kptr_xchg(PAIR, b"object", 8)
    assert special.timer_set(PAIR, 1)


def test_an_expired_entry_is_absent_to_every_operation(special):
    """An entry behaves as absent after its deadline; an attempt to change it removes it."""
    expired(special)
    assert special.get(PAIR) is None
    assert PAIR not in special
    assert list(special) == list(special.items()) == []
    assert not any(special.contains_many(PAIR))
    assert not any(special.lookup_many(PAIR)[1])
    assert special.lookup_batch(None, 5).count == 0
    assert not special.timer_set(PAIR, 0)
    assert len(special) == 1  # until an operation that would change it removes it
    with pytest.raises(KeyError):
        special.kptr_get(PAIR, 8)
    with pytest.raises(KeyError):
        del special[PAIR]
    assert len(special) == special.info()["objects"]["count"] == 0
    for refused in (
        lambda: special.update(PAIR, bytes(32), shmrhash.BPF_EXIST),
        lambda: special.pop(PAIR),
        lambda: special.add(PAIR, 1, offset=24),
        lambda: special.locked(PAIR).__enter__(),
        lambda: special.lookup(PAIR, shmrhash.BPF_F_LOCK) or special[PAIR],
    ):
        expired(special)
        with pytest.raises(KeyError):
            refused()
        special.expire()
        assert len(special) == 0
    expired(special)
    special.update(PAIR, bytes(32), shmrhash.BPF_NOEXIST)
    assert special.get(PAIR) == shown(1, bytes(8))
    assert special.kptr_get(PAIR, 8) is None


def test_expire_deletes_expired_entries_only(special):
    """expire() keeps entries that have no deadline or a deadline in the future."""
    for number in range(50):
        special[struct.pack("<Q", number)] = bytes(32)
    for number in range(50):  # set afterwards, because an insertion may remove expired entries
        special.timer_set(struct.pack("<Q", number), (0, 1, 1 << 62)[number % 3])

    left = len(special)  # all 50, since no insertion followed the deadlines
    assert special.expire() == left - 33

    assert len(special) == len(list(special)) == 33


def test_opening_a_map_takes_its_special_fields_from_the_segment(special):
    """H1: open() needs no fields=; open_or_create() with other fields is refused."""
    with RHashMap.open(special.name) as other:
        assert other._fields() == ((2, 0), (3, 8), (4, 16))
        assert other.max_bytes == 1 << 20
    with pytest.raises(shmrhash.LayoutMismatch, match="special fields"):
        RHashMap.open_or_create(special.name, **BOTH)


@pytest.mark.parametrize("read_only", [False, True])
def test_a_lookup_with_f_lock_does_not_delete_an_expired_entry(map_name, read_only):
    """R1: a lookup with BPF_F_LOCK leaves an expired entry. It once deleted the entry, which
    crashed on a read-only handle."""
    with RHashMap.create(
        map_name, key_size=8, value_size=16, max_entries=10, fields=[Timer(0)]
    ) as shared_map:
        shared_map[bytes(8)] = bytes(16)
        shared_map.timer_set(bytes(8), 1)
        with RHashMap.open(map_name, read_only=read_only) as reader:
            shared_map.unlink()
            assert reader.lookup(bytes(8), shmrhash.BPF_F_LOCK) is None
            assert len(reader) == 1
        shared_map.check()
