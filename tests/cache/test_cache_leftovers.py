"""If a stopped process holds the depots, an operation that deletes an expired entry cannot give its
object back; it keeps the object, and frees it later."""

import contextlib
import mmap
import struct
import threading

import pytest
from support.expiry import let_pass

from shmrhash import LockTimeout, _core

OBJECTS_HEADER_BYTES = 4096  # before the depots of the small classes
SMALL_CLASSES = 11
CONTEXTS = 4  # more contexts than this process uses
PATIENCE_SECONDS = 20


@contextlib.contextmanager
def computing(cache, key):
    """Let another thread, which has a context of its own, compute the value of a key until the
    block ends."""
    inside, leave = threading.Event(), threading.Event()

    def compute():
        inside.set()
        leave.wait(PATIENCE_SECONDS)
        return b""

    thread = threading.Thread(target=cache.get_or_compute, args=(key, compute))
    thread.start()
    try:
        assert inside.wait(PATIENCE_SECONDS)
        yield
    finally:
        leave.set()
        thread.join()


@contextlib.contextmanager
def held_depots(cache, context):
    """Hold the depots of all small objects in the name of this context until the block ends."""
    handle = cache.handle
    depots = handle.info()["depots"]
    # In a cache's element, 8 bytes of mark follow the value.
    start = OBJECTS_HEADER_BYTES + _core.segment_bytes(
        handle.key_size, handle.value_size + 8, handle.max_entries, depots
    )
    places = [start + 64 * number for number in range(depots * SMALL_CLASSES)]
    with open(handle.info()["path"], "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        words = [struct.unpack_from("<Q", memory, place)[0] for place in places]
        for place, word in zip(places, words, strict=True):
            struct.pack_into("<Q", memory, place, word | context << 1 | 1)
        try:
            yield
        finally:
            for place, word in zip(places, words, strict=True):
                struct.pack_into("<Q", memory, place, word)


@pytest.mark.parametrize("old", [b"older", b"longer than new"], ids=["as long", "longer"])
@pytest.mark.parametrize("context", range(CONTEXTS))
def test_the_object_of_an_expired_entry_is_not_taken_for_the_new_value(make_cache, old, context):
    """W1: add() deletes the expired entry, and cannot give its object back because the depots are
    held. add() waits until it can, and never stores the old object under the key."""
    cache = make_cache(key=bytes, value=bytes, max_entries=100, timeout=0.1)
    with computing(cache, b"another key"):
        cache.set(b"key", old, ttl=0.001)
        let_pass(0.001)
        with held_depots(cache, context), contextlib.suppress(LockTimeout):
            cache.add(b"key", b"newer")
        cache.add(b"key", b"newer")
        assert cache.get(b"key") == b"newer"
