"""Ways to walk over a map, the judge of what a walk delivered, and jobs that walk, churn and
take.

A way is a function (map, rng, step) that calls step(key, value) for each entry when it is
delivered; value is None where the way delivers none. What step does, for instance an insertion or
deletion, happens in the middle of the walk.
"""

import time

from support.jobs import ROUNDS_MAX, stable_value, word

BATCH_MAX = 400


def value_of(key, size, version=0):
    """Return the value of a key: a checksum of the key and its version, in each word."""
    number = int.from_bytes(key, "little") * 31 + version
    return (stable_value(number) * (size // 8 + 1))[:size]


def rows_of(buffer, size):
    """Return the buffer that a batch returned, as a list of bytes."""
    raw = buffer if isinstance(buffer, bytes) else buffer.tobytes()
    return [raw[at : at + size] for at in range(0, len(raw), size)]


def pairs_of(m, keys, values):
    """Return the entries of two arrays."""
    return list(zip(rows_of(keys, m.key_size), rows_of(values, m.value_size), strict=True))


# ---- the ways ----


def by_keys(m, rng, step):
    for key in m:
        step(key, None)


def by_items(m, rng, step):
    for key, value in m.items():
        step(key, value)


def by_next_key(m, rng, step):
    key = None
    while (key := m.get_next_key(key)) is not None:
        step(key, None)


def by_callback(m, rng, step):
    m.for_each(step)


def by_batches(m, rng, step):
    """Walk in batches, whose counts are all the same, or random."""
    most = rng.choice([1, 2, 3, 6, 7, 8, 31, 32, 33, BATCH_MAX])
    same = rng.random() < 0.5
    cursor = None
    while True:
        count = most if same else rng.randint(1, most)
        batch = m.lookup_batch(cursor, count)
        assert batch.count == count or batch.cursor is None
        for key, value in pairs_of(m, batch.keys, batch.values):
            step(key, value)
        cursor = batch.cursor
        if cursor is None:
            return


def by_arrays(m, rng, step):
    for key, value in pairs_of(m, *m.to_arrays()):
        step(key, value)


WAYS = [by_keys, by_items, by_next_key, by_callback, by_batches, by_arrays]
# Each entry that these deliver is in the map at that moment, if only the walker's handle writes.
FRESH_WAYS = [by_keys, by_items, by_next_key, by_callback]


# ---- the judge ----


def expect_exactly_once(pairs, staying, possible, value_size):
    """I1: assert that each staying key was delivered once, no key twice, only possible keys, and
    each with its value."""
    keys = [key for key, _ in pairs]
    found = set(keys)
    twice = len(keys) - len(found)
    assert not twice, f"{twice} keys twice"
    missed = staying - found
    assert not missed, f"{len(missed)} of {len(staying)} staying keys missed"
    foreign = found - possible
    assert not foreign, f"{len(foreign)} keys that were never there"
    for key, value in pairs:
        assert value is None or value == value_of(key, value_size), f"value of {key.hex()}"


# ---- jobs, as those in jobs.py ----


def entries_of(numbers, m):
    keys = [word(number) for number in numbers]
    return keys, [value_of(key, m.value_size) for key in keys]


def churn_in_waves(gate, m, numbers, rng):
    """Fill the map with this worker's own keys and empty it again, by arrays and one by one."""
    keys, values = entries_of(numbers, m)
    gate.wait()
    for _ in gate.open_for(ROUNDS_MAX):
        if rng.random() < 0.5:
            m.update_many(keys, values)
        else:
            for key, value in zip(keys, values, strict=True):
                m[key] = value
        if rng.random() < 0.5:
            m.delete_many(keys)
        else:
            for key in rng.sample(keys, len(keys)):
                del m[key]


def walk_again_and_again(gate, m, staying, churned, seconds, rng):
    """Walk in all ways and judge each walk; return how many walks of each way there were."""
    staying = {word(number) for number in staying}
    possible = staying | {word(number) for number in churned}
    walks = dict.fromkeys((way.__name__ for way in WAYS), 0)
    gate.wait()
    ends = time.monotonic() + seconds
    try:
        while time.monotonic() < ends or not all(walks.values()):
            way = min(WAYS, key=lambda way: (walks[way.__name__] > 0, rng.random()))
            pairs = []
            # A callback that returned something true would end for_each.
            way(m, rng, lambda key, value, pairs=pairs: pairs.append((key, value)))
            try:
                expect_exactly_once(pairs, staying, possible, m.value_size)
            except AssertionError as error:
                raise AssertionError(f"{way.__name__}: {error}") from None
            walks[way.__name__] += 1
    finally:
        gate.finish()
    return walks


def feed(gate, m, numbers):
    """Insert this worker's own keys, each once."""
    keys, values = entries_of(numbers, m)
    gate.wait()
    for key, value in zip(keys, values, strict=True):
        m.update(key, value, 1)
    gate.finish()


def take_batches(gate, m, rng, until_finished):
    """Take entries in batches of random counts, over and over; return the keys of all."""
    taken = []
    gate.wait()
    while True:
        last = not until_finished or gate.done.is_set()
        cursor = None
        while True:
            batch = m.lookup_and_delete_batch(cursor, rng.choice([1, 2, 5, 7, 30, 300]))
            for key, value in pairs_of(m, batch.keys, batch.values):
                if value != value_of(key, m.value_size):
                    raise AssertionError(f"{key.hex()} came with the value {value.hex()}")
                taken.append(key)
            cursor = batch.cursor
            if cursor is None:
                break
        if last:
            return taken


def refuse_references(gate, m, numpy):
    """Return how many operations refuse an array of Python objects, whose memory holds pointers."""
    refused = 0
    for operation in (
        lambda: m.lookup_batch(None, 10, key_dtype=object),
        lambda: m.lookup_and_delete_batch(None, 10, value_dtype=object),
        lambda: m.to_arrays(key_dtype=object),
        lambda: m.lookup_many(numpy.arange(3), out=numpy.empty(3, object)),
        lambda: m.lookup_many(numpy.arange(3), dtype=object),
        lambda: m.update_many(numpy.arange(3), numpy.empty(3, object)),
    ):
        try:
            repr(operation())
        except (TypeError, ValueError):
            refused += 1
    return refused
