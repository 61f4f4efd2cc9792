"""Wild values in every word of a cache that recovery does not need: what is found is right, and
nothing crashes or hangs (H1)."""

import os
import random
import struct
import threading

import pytest
from support.hostile.damage import FIRST_CONTEXT
from support.hostile.segment import CONTEXTS, USABLE, Segment, ending_of

from shmrhash import Cache

MOST = 60
COUNTS_BYTES, PAGE = 1024 * 64, 4096
CHILD = 9 * 8  # in a context: of a claim, what its thread waits for
NEVER_S = 600
WILD = (0, 1, 2, 7, MOST, MOST + 1, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 63, (1 << 64) - 1)


@pytest.fixture
def damaged(map_name):
    """A full cache and its Segment; check() at the end: the damage was of hints only."""
    with Cache(map_name, key=int, value=int, max_entries=MOST, timeout=20) as cache:
        for key in range(2 * MOST):
            cache.set(key, -key)
        yield cache, Segment(cache.handle)
        cache.check()
        cache.unlink()


def use(cache):
    for key in range(5 * MOST):
        if key % 3:
            cache.set(key, -key)
        assert cache.get_or_compute(key % 80, lambda key=key: -(key % 80)) == -(key % 80)
        assert cache.get(key, -key) == -key
        assert len(cache) <= MOST
    cache.stats()
    cache.info()


def marks(segment):
    """The offset of each entry's mark: behind its key, its deadline and value, in some order."""
    for start, content in segment.whole():
        words = struct.unpack(f"<{len(content) // 8}q", content)
        for at in range(len(words) - 3):
            if 2 < words[at] < 2 * MOST and -words[at] in words[at + 1 : at + 3]:
                yield start + 8 * at + 24


def test_wild_marks_are_hints(damaged, seed):
    cache, segment = damaged
    rng = random.Random(seed)
    places = list(marks(segment))
    assert len(places) > MOST // 2

    for _ in range(5):
        for at in places:
            segment.set(at, rng.choice((*WILD, rng.getrandbits(64))))
        assert ending_of(lambda: use(cache)) == "done"


@pytest.mark.parametrize("word", WILD)
def test_wild_hands_rings_and_counts_are_hints(damaged, word):
    """The three words, the counts, and the ring with the ghosts, from the file's end backwards."""
    cache, segment = damaged
    size = os.path.getsize(segment.path)
    heads = size - PAGE - COUNTS_BYTES - PAGE
    places = [*(heads + 64 * number for number in range(3)), *range(size - PAGE, size, 8)]
    places += range(heads + PAGE, heads + PAGE + 256, 8)

    for at in places:
        segment.set(at, word)

    assert ending_of(lambda: use(cache)) == "done"


def test_wild_words_about_who_waits_cost_a_computation_at_most(damaged, seed):
    """Threads with nested claims wait for each other, while what they say that they wait for is
    overwritten: all end, with the right values."""
    cache, segment = damaged
    rng = random.Random(seed)
    end = FIRST_CONTEXT + segment.get(segment.region(CONTEXTS, USABLE))
    stride = 320
    stop = threading.Event()

    def ask(number):
        own = random.Random(f"{seed}-{number}")

        def value(key, depth):
            if depth:
                other = 1000 + own.randrange(8)
                found = cache.get_or_compute(other, lambda: value(other, depth - 1), wait=NEVER_S)
                assert found == other
            return key

        for _ in range(100):
            key = 1000 + own.randrange(8)
            assert cache.get_or_compute(key, lambda key=key: value(key, 3), wait=NEVER_S) == key
            cache.delete(key)

    def damage():
        while not stop.is_set():
            for context in range(FIRST_CONTEXT, end - stride + 1, stride):
                segment.set(context + CHILD, rng.choice((*WILD, rng.randrange(MOST))))

    def work():
        threads = [threading.Thread(target=ask, args=[number]) for number in range(3)]
        vandal = threading.Thread(target=damage)
        for thread in [*threads, vandal]:
            thread.start()
        for thread in threads:
            thread.join()
        stop.set()
        vandal.join()

    assert ending_of(work) == "done"
