"""Wild values in every word of a cache that recovery does not need: a cache finds right values
only, and no operation crashes or hangs (H1)."""

import os
import random
import struct
import threading

import pytest
from support.hostile.damage import FIRST_CONTEXT
from support.hostile.segment import CONTEXTS, USABLE, Segment, ending_of

from shmrhash import Cache, SegmentCorrupt

MOST = 60
COUNTS_BYTES, PAGE = 1024 * 128, 4096
INVALIDATIONS, CLEARED = 192, 256  # in the head of a cache
TAG_BYTES = 65536 * 8  # at the end of a cache with tags
CHILD = 9 * 8  # in the context of a claim: what the claim's thread waits for
NEVER_S = 600
WILD = (0, 1, 2, 7, MOST, MOST + 1, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 63, (1 << 64) - 1)


@pytest.fixture
def damaged(map_name):
    """A full cache and its Segment. check() succeeds at the end, because the damage is of hints
    only."""
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
    """Yield the offset of each entry's mark, which follows its key, deadline, birth and value."""
    for start, content in segment.whole():
        words = struct.unpack(f"<{len(content) // 8}q", content)
        for at in range(len(words) - 4):
            if 2 < words[at] < 2 * MOST and words[at + 3] == -words[at]:
                yield start + 8 * at + 32


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
    """Wild words in the three head words, the counts and the ring are only hints to a cache."""
    cache, segment = damaged
    size = os.path.getsize(segment.path)
    heads = size - PAGE - COUNTS_BYTES - PAGE
    places = [*(heads + 64 * number for number in range(3)), *range(size - PAGE, size, 8)]
    places += range(heads + PAGE, heads + PAGE + 256, 8)

    for at in places:
        segment.set(at, word)

    assert ending_of(lambda: use(cache)) == "done"


@pytest.fixture(params=[False, True], ids=["no tags", "tags"])
def tagged(request, map_name):
    """A full cache, its Segment, and the offset at which its head begins."""
    with Cache(map_name, key=int, value=int, max_entries=MOST, tags=request.param) as cache:
        tags = ["t", "u", "v", "w"] if request.param else []
        for key in range(2 * MOST):
            cache.set(key, -key, tags=tags)
        cache.clear()
        for key in range(2 * MOST):
            cache.set(key, -key, tags=tags)
        segment = Segment(cache.handle)
        end = os.path.getsize(segment.path) - TAG_BYTES * request.param
        yield cache, segment, end - PAGE - COUNTS_BYTES - PAGE
        cache.unlink()


def invalidate_and_use(cache):
    cache.clear()
    if cache.handle._fields()[-1][0] == 6:
        cache.invalidate("t", "x")
    use(cache)
    cache.expire()
    list(cache._entries(0))


@pytest.mark.parametrize("word", WILD)
@pytest.mark.parametrize("place", [INVALIDATIONS, CLEARED])
def test_wild_numbers_of_invalidations_cost_hits_at_most(tagged, place, word):
    cache, segment, head = tagged
    assert segment.get(head + INVALIDATIONS) == segment.get(head + CLEARED) == 1
    other = segment.get(head + INVALIDATIONS + CLEARED - place)

    segment.set(head + place, word)

    assert ending_of(lambda: use(cache)) == "done"
    if word > other if place == CLEARED else word < other:
        with pytest.raises(SegmentCorrupt, match="an invalidation that never was"):
            cache.check()
    assert ending_of(lambda: invalidate_and_use(cache)) == "done"


def test_wild_births_tags_and_tag_words_cost_hits_at_most(tagged, seed):
    cache, segment, head = tagged
    rng = random.Random(seed)
    has_tags = cache.handle._fields()[-1][0] == 6
    places = []
    for start, content in segment.whole():
        words = struct.unpack(f"<{len(content) // 8}q", content)
        for at in range(len(words) - 5):
            if 2 < words[at] < 2 * MOST and words[at + 3 + has_tags] == -words[at]:
                places += [start + 8 * (at + 2 + one) for one in range(1 + has_tags)]
    assert len(places) > MOST // 2
    if has_tags:
        places += range(head + PAGE + COUNTS_BYTES + PAGE, os.path.getsize(segment.path), 2048)

    for _ in range(3):
        for at in places:
            segment.set(at, rng.choice((*WILD, rng.getrandbits(64))))
        assert ending_of(lambda: invalidate_and_use(cache)) == "done"
    segment.set(places[0], (1 << 64) - 1)
    with pytest.raises(SegmentCorrupt):
        cache.check()


def test_wild_words_about_waiters_cost_a_computation_at_most(damaged, seed):
    """Threads with nested claims wait for each other while the words that say what they wait for
    are overwritten. All threads end, with the right values."""
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
