"""Handles of one map in one process share one mapping and one process slot."""

import copy
import gc
import os
import pickle
import sys
import threading
from pathlib import Path

import pytest
from support.children import in_child
from support.descriptors import descriptors_of

import shmrhash
from shmrhash import RHashMap, SharedDict

HAS_GIL = getattr(sys, "_is_gil_enabled", lambda: True)()
COPIES = 3_000


def mappings(file):
    """Return how many mappings of a file this process has, not counting pages that hold locks."""
    device = f"{os.major(file.st_dev):02x}:{os.minor(file.st_dev):02x}"
    found = 0
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, _, end = line.split()[0].partition("-")
        if line.split()[3:5] == [device, str(file.st_ino)] and int(end, 16) - int(start, 16) > 4096:
            found += 1
    return found


def file_of(m):
    return os.stat(m.info()["path"])


@pytest.mark.parametrize("way", ["pickle", "open", "copy"])
def test_many_handles_cost_one_mapping_and_one_slot(make_map, way):
    m = make_map()
    m[b"12345678"] = b"abcdefgh"
    ways = {
        "pickle": lambda: pickle.loads(pickle.dumps(m)),
        "open": lambda: RHashMap.open(m.name),
        "copy": lambda: copy.copy(m),
    }
    handles = [ways[way]() for _ in range(COPIES)]

    assert [handle[b"12345678"] for handle in handles] == [b"abcdefgh"] * COPIES
    for number, handle in enumerate(handles):
        handle[number.to_bytes(8, "big")] = bytes(8)
    assert mappings(file_of(m)) == 1
    assert descriptors_of(file_of(m)) == 1
    assert m.info()["processes"] == 1
    assert len(m) == COPIES + 1

    del handles, handle
    assert m.info()["processes"] == 1
    assert m[b"12345678"] == b"abcdefgh"


def test_many_copies_of_a_dict_cost_one_mapping_and_one_slot():
    with SharedDict(key=str, value=object) as d:
        d["a"] = [1]
        raw = pickle.dumps(d)
        copies = [pickle.loads(raw) for _ in range(COPIES)]

        assert [one["a"] for one in copies] == [[1]] * COPIES
        assert d.info()["processes"] == 1
        assert mappings(file_of(d)) == 1
        d.check()
        del copies


def test_the_last_closed_handle_detaches_in_any_order(make_map):
    m = make_map()
    file = file_of(m)
    second, third = RHashMap.open(m.name), RHashMap.open(m.name, timeout=1)
    watcher = RHashMap.open(m.name, read_only=True)

    m.close()
    second[b"12345678"] = bytes(8)
    assert watcher.info()["processes"] == 1
    second.close()
    third[b"12345678"] = bytes(8)
    third.close()

    assert watcher.info()["processes"] == 0
    watcher.check()
    watcher.close()
    if HAS_GIL:  # otherwise the mappings stay until the handles are freed (docs/operations.md)
        assert mappings(file) == 0
    assert descriptors_of(file) == 0


def test_access_and_timeout_belong_to_each_handle(make_map):
    m = make_map(timeout=5)
    reader = RHashMap.open(m.name, read_only=True)
    writer = RHashMap.open(m.name, write_only=True, timeout=0.25)
    m[b"12345678"] = bytes(8)

    assert (m.timeout, writer.timeout) == (5, 0.25)
    assert reader[b"12345678"] == bytes(8)
    with pytest.raises(shmrhash.ReadOnlyMap):
        reader[b"12345678"] = bytes(8)
    with pytest.raises(shmrhash.WriteOnlyMap):
        writer[b"12345678"]
    m.close()
    with pytest.raises(shmrhash.MapClosed):
        m[b"12345678"]
    writer[b"12345678"] = b"abcdefgh"
    assert reader[b"12345678"] == b"abcdefgh"
    reader.close()
    writer.close()


def test_a_section_of_one_handle_makes_other_handles_of_its_process_wait(make_map):
    """L1: handles share contexts, not sections; waiting for its own section is an error."""
    m = make_map(timeout=0.2)
    other = RHashMap.open(m.name, timeout=0.2)
    m[b"12345678"] = bytes(8)
    told = []

    def write():
        with pytest.raises(shmrhash.LockTimeout):
            other[b"12345678"] = bytes(8)
        told.append(True)

    with m.locked(b"12345678") as value:
        with pytest.raises(shmrhash.DeadlockError):
            other[b"12345678"] = bytes(8)
        thread = threading.Thread(target=write)
        thread.start()
        thread.join()
        value[:] = b"abcdefgh"
    assert told == [True]
    assert other[b"12345678"] == b"abcdefgh"
    other.close()


def test_a_new_map_of_the_same_name_is_another_attachment(make_map, map_name):
    m = make_map()
    m[b"12345678"] = b"the old."
    m.unlink()
    fresh = make_map(f"{map_name}")
    fresh[b"12345678"] = b"the new."

    assert (m[b"12345678"], fresh[b"12345678"]) == (b"the old.", b"the new.")
    m.close()


@pytest.mark.thorough
def test_threads_that_open_and_close_always_find_the_map_attached(make_map, duration):
    """C1: four threads open and close handles of one map."""
    m = make_map()
    stop = threading.Event()
    failures, turns = [], [0] * 4

    def work(number):
        key = number.to_bytes(8, "little")
        try:
            while not stop.is_set():
                with RHashMap.open(m.name) as own:
                    own[key] = turns[number].to_bytes(8, "little")
                    assert own[key] == turns[number].to_bytes(8, "little")
                turns[number] += 1
                if turns[number] % 50 == 0:
                    m.close() if number == 0 else gc.collect()
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    while min(turns) < 200 and not failures:
        stop.wait(0.01)
    stop.set()
    for thread in threads:
        thread.join()

    assert failures == []
    with RHashMap.open(m.name) as again:
        assert again.info()["processes"] == 1
        again.check()


def test_handles_work_after_the_program_has_closed_every_descriptor(make_map):
    """A handle finds its file although the program has closed the descriptor of the attachment."""
    m = make_map()
    other = RHashMap.open(m.name)

    def close_and_use():
        os.closerange(3, 256)
        own = os.open("/dev/null", os.O_RDONLY)
        other[b"12345678"] = m[b"12345678"] if b"12345678" in m else bytes(8)
        assert other.info()["entries"] == m.info()["entries"] == 1
        other.close()
        m.close()
        os.fstat(own)  # no handle has closed the file that has the descriptor's number now

    in_child(close_and_use)
    assert len(other) == 1
    other.close()


def test_a_child_that_closes_the_handles_it_opened_is_detached(make_map):
    """A handle that a child inherits attaches the child only when the child uses that handle."""
    m = make_map()
    m[b"12345678"] = bytes(8)

    def open_close_and_use():
        with RHashMap.open(m.name) as own:
            own[b"12345678"] = bytes(8)
            counts = [own.info()["processes"]]
        counts.append(m.info()["processes"])
        m[b"12345678"] = bytes(8)
        return [*counts, m.info()["processes"]]

    assert in_child(open_close_and_use) == [2, 1, 2]
