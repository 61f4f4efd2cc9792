"""Jobs of the workers that test dicts; spawned children import this module."""

import contextlib
import os
import pickle
import random
import zlib

import shmrhash
from shmrhash import SharedCounter, SharedDict

NOEXIST = shmrhash.BPF_NOEXIST
ROUNDS_MAX = 100_000


# ---- counters ----


def count_words(gate, counter, words, rounds, seed):
    """Count random words one by one and in batches; return how often each was counted."""
    rng = random.Random(seed)
    counted = dict.fromkeys(words, 0)
    sums = []
    gate.wait()
    for number in range(rounds):
        word = rng.choice(words)
        if number % 10:
            sums.append((word, counter.inc(word)))
            counted[word] += 1
        else:
            batch = rng.choices(words, k=5)
            counter.update(batch)
            counter.subtract([word])
            for one in batch:
                counted[one] += 1
            counted[word] -= 1
    return counted, sums


def count_only(gate, counter, words, rounds, seed):
    """Count words one by one; return the sums that came back."""
    rng = random.Random(seed)
    gate.wait()
    return [(word, counter.inc(word)) for word in rng.choices(words, k=rounds)]


# ---- atomic steps on one key ----


def append_to_one_list(gate, d, key, rounds, mark):
    """Append to one list, in turn with update_with and with a section."""
    gate.wait()
    for number in range(rounds):
        if number % 2:
            d.update_with(key, lambda value, item=(mark, number): [*value, item], [])
        else:
            with d.locked(key, default=[]) as entry:
                entry.value.append((mark, number))


def append_without_lock(gate, d, key, rounds, mark):
    """Append to a copy of the list, as a beginner might, which stores nothing."""
    gate.wait()
    for number in range(rounds):
        d[key].append((mark, number))


def set_default_and_pop(gate, d, rounds, mark):
    """Race twice for each key: to store it and to take it; return which keys this worker won."""
    stored, taken = [], []
    for number in range(rounds):
        key = f"the key that all race for, number {number}"
        gate.wait()
        if d.setdefault(key, (mark, number)) == (mark, number):
            stored.append(number)
        gate.wait()
        found = d.pop(key, None)
        if found is not None:
            taken.append(found)
    return stored, taken


def pop_items(gate, d):
    """Pop items until the dict is empty."""
    taken = []
    gate.wait()
    while True:
        try:
            taken.append(d.popitem())
        except KeyError:
            return taken


def exchange_tokens(gate, d, key, rounds, mark):
    """Exchange tokens with the value of one key; return all tokens that were returned."""
    gate.wait()
    return [d.exchange(key, (mark, number)) for number in range(rounds)]


def churn_long_keys(gate, d, first, count, rounds):
    """Insert and delete this worker's own keys, of every length, so that the table resizes."""
    gate.wait()
    for _ in range(rounds):
        for number in range(first, first + count):
            d[churned_key(number)] = "v" * (number % 300)
        for number in range(first, first + count):
            del d[churned_key(number)]
    gate.finish()


def churned_key(number):
    return f"churned {number} " + "k" * (number % 40)


def stable_key(number):
    return f"stable {number} " + "s" * (number % 40)


def walk_all(gate, d, stable_count):
    """Return the number of walks; each must deliver every stable entry once, with its value."""
    walks = 0
    gate.wait()
    for _ in gate.open_for(ROUNDS_MAX):
        seen = {}
        for key, value in d.items():
            if key in seen:
                raise AssertionError(f"{key!r} came twice")
            seen[key] = value
        for number in range(stable_count):
            if seen.get(stable_key(number)) != str(number):
                raise AssertionError(
                    f"stable entry {number} came as {seen.get(stable_key(number))}"
                )
        foreign = [key for key in seen if not key.startswith(("stable ", "churned "))]
        if foreign:
            raise AssertionError(f"keys that nobody stored: {foreign[:3]}")
        walks += 1
    return walks


# Values with a checksum, which shows a mixture of two values.


def checked_value(key, number, size):
    """Return an object whose pickle has about size bytes; it names its key and has a checksum."""
    body = random.Random(f"{key}/{number}").randbytes(size)
    return {"key": key, "number": number, "crc": zlib.crc32(body), "body": body}


def expect_whole(key, value):
    """Return the number of a value; raise unless the value was stored whole under this key."""
    if value["key"] != key or zlib.crc32(value["body"]) != value["crc"]:
        raise AssertionError(f"key {key}: a torn or foreign value of {value['key']}")
    return value["number"]


# ---- handles ----


def store_mark(gate, d, key, value):
    """Store in a dict that was inherited or pickled; return its name, its types and its length."""
    gate.wait()
    d[key] = value
    return d.name, d.key_type, d.value_type, len(d)


def pickled_again(gate, data, key):
    """Unpickle a handle, use it, and pickle it again."""
    gate.wait()
    d = pickle.loads(data)
    d[key] = os.getpid()
    return pickle.dumps(d)


pool_dict = None
pool_counter = None


def start_pool_worker(shared, counter=None):
    """Initialize a worker of a Pool or an executor."""
    global pool_dict, pool_counter
    pool_dict, pool_counter = shared, counter


def square_in_pool(number):
    """Return the square of number; the dict caches it."""
    if pool_counter is not None:
        pool_counter.inc("tasks")
    with contextlib.suppress(KeyError):
        return pool_dict[number]
    pool_dict[number] = number * number
    return number * number


def child_makes_its_own(gate):
    """Make and use an anonymous dict in a child."""
    gate.wait()
    with SharedDict() as d, SharedCounter() as c:
        d["a"] = 1
        c.inc("b")
        return d.copy(), c.as_dict()


# ---- values of many sizes ----

SIZES = [100, 3000, 5000, 9000, 70_000, 300_000, 1_000_000]


def body(number, size):
    return number.to_bytes(8, "little") * (size // 8)


def change_sizes(d, rng, rounds, taken, every):
    """Store and delete values of many sizes. Return how many stores were refused, and the largest
    result of taken(), which is called in one of `every` rounds."""
    refused = most = 0
    for turn in range(rounds):
        key = rng.randrange(200)
        try:
            if rng.random() < 0.4:
                d.pop(key, None)
            else:
                d[key] = body(key, rng.choice(SIZES))
        except shmrhash.OutOfMemory:
            refused += 1
        if turn % every == 0:
            most = max(most, taken())
    return refused, most
