"""Jobs of the workers in the tests with processes and threads.

A job asserts at once what it can check by itself, and returns what only the results of all jobs
together can show. It knows nothing of the map but its handle, and imports little, because spawned
children import this module.
"""

import contextlib
import os
import random
import threading

import shmrhash
from shmrhash import RHashMap
from support.children import Child, in_child
from support.words import word

NOEXIST, EXIST = 1, 2

READS_PER_ROUND = 64
# Readers end when the writers have finished; this bounds their rounds if no writer does.
ROUNDS_MAX = 200_000
CHILDREN_AT_ONCE = 10


def number_in(value):
    return int.from_bytes(value, "little")


def stable_value(number):
    """Return the value that every reader expects under the stable key of that number."""
    return word(number * 0x9E37_79B9_7F4A_7C15 % (1 << 64))


def whole_value(number, size):
    """Return a value whose 32-bit words each show which write it is from."""
    return number.to_bytes(4, "little") * (size // 4)


def number_of_whole(value, size):
    """Return the number of the write that a value is from; raise for a mixture of two writes."""
    number = int.from_bytes(value[:4], "little")
    if value != whole_value(number, size):
        words = {value[at : at + 4].hex() for at in range(0, len(value), 4)}
        raise AssertionError(f"a mixture of the writes {sorted(words)}")
    return number


# ---- counters ----


def add_ones(gate, m, keys_count, adds, seed):
    """Add 1 to random keys; return all sums that add() returned, by key."""
    rng = random.Random(seed)
    seen = {number: [] for number in range(keys_count)}
    gate.wait()
    for _ in range(adds):
        number = rng.randrange(keys_count)
        seen[number].append(m.add(word(number), 1, default=0))
    return seen


# ---- keys that all workers use ----


def insert_and_take_the_same(gate, m, rounds, keys_per_round, mark):
    """In each round race to insert the same new keys, and then to take them."""
    inserted, taken = [], []
    for number in range(rounds):
        keys = range(number * keys_per_round, (number + 1) * keys_per_round)
        gate.wait()
        for key in keys:
            try:
                m.update(word(key), word(mark), NOEXIST)
                inserted.append(key)
            except shmrhash.KeyExists:
                pass
        gate.wait()
        for key in keys:
            with contextlib.suppress(shmrhash.KeyNotFound):
                taken.append((key, number_in(m.lookup_and_delete(word(key)))))
    return inserted, taken


def insert_and_delete_at_random(gate, m, keys_count, operations, seed):
    """Insert and delete a few keys; return, by key, successful insertions less deletions."""
    rng = random.Random(seed)
    balance = dict.fromkeys(range(keys_count), 0)
    gate.wait()
    for _ in range(operations):
        key = rng.randrange(keys_count)
        try:
            if rng.random() < 0.5:
                m.update(word(key), word(key), NOEXIST)
                balance[key] += 1
            elif rng.random() < 0.5:
                m.delete(word(key))
                balance[key] -= 1
            else:
                if m.lookup_and_delete(word(key)) != word(key):
                    raise AssertionError(f"took another key's value from {key}")
                balance[key] -= 1
        except (shmrhash.KeyExists, shmrhash.KeyNotFound):
            pass
    return balance


# ---- the limit ----


def insert_until_refused(gate, m, first, count):
    """Try to insert each of count keys of this worker's own; return those that the map took."""
    taken = []
    gate.wait()
    for key in range(first, first + count):
        try:
            m.update(word(key), word(key), NOEXIST)
            taken.append(key)
        except shmrhash.MapFull:
            pass
    return taken


def churn_at_the_limit(gate, m, first, count, operations, seed):
    """Insert and delete own keys in a map with too little room; return those in it at the end."""
    rng = random.Random(seed)
    mine = set()
    gate.wait()
    for _ in range(operations):
        key = first + rng.randrange(count)
        if key in mine:
            m.delete(word(key))
            mine.remove(key)
        else:
            try:
                m.update(word(key), word(key), NOEXIST)
                mine.add(key)
            except shmrhash.MapFull:
                pass
        if len(m) > m.max_entries:
            raise AssertionError(f"{len(m)} entries where {m.max_entries} fit")
    return mine


# ---- growing and shrinking ----


def churn(gate, m, first, count, rounds):
    """Insert count keys of this worker's own and delete them again, rounds times."""
    gate.wait()
    for _ in range(rounds):
        for key in range(first, first + count):
            m.update(word(key), stable_value(key), NOEXIST)
        for key in range(first, first + count):
            m.delete(word(key))
    gate.finish()


def read_stable(gate, m, stable_count, seed):
    """Look up keys that are in the map all along, and keys that never are."""
    rng = random.Random(seed)
    reads = 0
    gate.wait()
    for _ in gate.open_for(ROUNDS_MAX):
        for _ in range(READS_PER_ROUND):
            key = rng.randrange(stable_count)
            found = m.lookup(word(key))
            if found != stable_value(key):
                raise AssertionError(f"stable key {key}: found {found}")
            absent = (1 << 40) + rng.randrange(1 << 20)
            if m.lookup(word(absent)) is not None or word(absent) in m:
                raise AssertionError(f"found key {absent}, which nobody inserted")
            reads += 1
    return reads


def write_versions(gate, m, keys, versions):
    """Store ever higher versions under this worker's own keys, and read each back."""
    gate.wait()
    for version in range(1, versions + 1):
        for key in keys:
            m.update(word(key), word(version), EXIST)
            if number_in(m[word(key)]) != version:
                raise AssertionError(f"key {key} lost its version {version}")
    gate.finish()


def read_versions(gate, m, keys, seed):
    """Read versions at random; none may be lower than one that this reader saw before."""
    rng = random.Random(seed)
    seen = dict.fromkeys(keys, 0)
    reads = 0
    gate.wait()
    for _ in gate.open_for(ROUNDS_MAX):
        for _ in range(READS_PER_ROUND):
            key = rng.choice(keys)
            version = number_in(m[word(key)])
            if version < seen[key]:
                raise AssertionError(f"key {key} went back from {seen[key]} to {version}")
            seen[key] = version
            reads += 1
    return reads


# ---- whole values ----


def write_whole(gate, m, key, value_size, writer, writes):
    """Overwrite one key again and again with values that show which write they are from."""
    name = word(key)
    gate.wait()
    for number in range(writes):
        m.update(name, whole_value(writer << 24 | number, value_size), EXIST)
    gate.finish()


def read_whole(gate, m, key, value_size, writers, writes):
    """Read one key; every value must be from one write. Return how often the value had changed."""
    name = word(key)
    changes = last = 0
    gate.wait()
    for _ in gate.open_for(ROUNDS_MAX):
        for _ in range(READS_PER_ROUND):
            number = number_of_whole(m[name], value_size)
            if number >> 24 not in writers or number & 0xFF_FFFF >= writes:
                raise AssertionError(f"read {number:#x}, which nobody wrote")
            changes += number != last
            last = number
    return changes


def reinsert_whole(gate, m, key, value_size, writes):
    """Insert and delete one key, so that its element is soon used by another key."""
    gate.wait()
    for number in range(writes):
        m.update(word(key), whole_value(key << 24 | number, value_size), NOEXIST)
        found = number_of_whole(m[word(key)], value_size)
        if found != key << 24 | number:
            raise AssertionError(f"key {key} holds {found:#x} after write {number:#x}")
        m.delete(word(key))
    gate.finish()


def read_reinserted(gate, m, keys, value_size):
    """Read keys that other workers insert and delete: each is absent, or has a whole value of its
    own. Return how many keys were present."""
    found = 0
    gate.wait()
    for _ in gate.open_for(ROUNDS_MAX):
        for _ in range(READS_PER_ROUND // len(keys)):
            for key in keys:
                value = m.lookup(word(key))
                if value is None:
                    continue
                number = number_of_whole(value, value_size)
                if number >> 24 != key:
                    raise AssertionError(f"key {key} has the value {number:#x} of another key")
                found += 1
    return found


# ---- handles and processes ----


def add_one_each_time_attached(gate, name, rounds):
    """Open the map, add 1 and close it, rounds times."""
    gate.wait()
    for _ in range(rounds):
        with RHashMap.open(name) as m:
            m.add(word(0), 1)


def use_before_and_after(gate, m, key):
    """Use the handle, wait at the gate while the parent does its part, and use the handle again."""
    m.update(word(key), word(1))
    gate.wait()
    gate.wait()
    before = number_in(m[word(key)])
    m.update(word(key), word(2), EXIST)
    m.check()
    return before, number_in(m[word(key)])


def exit_without_closing(gate, m, key):
    """Exit without closing the handle, between two operations."""
    m.update(word(key), word(key))
    os._exit(0)


def fork_children_who_use(gate, m, first, children):
    """Fork children that fork again; each writes its key through the inherited handle."""
    gate.wait()
    running = []
    for number in range(children):
        running.append(Child(write_and_fork, m, first + 2 * number))
        while len(running) > (CHILDREN_AT_ONCE if number + 1 < children else 0):
            running.pop(0).result()


def write_and_fork(m, key):
    """In a child, write a key and fork a child that writes the next one."""
    m.update(word(key), word(key), NOEXIST)
    grandchild = Child(m.update, word(key + 1), word(key + 1), NOEXIST)
    m.add(word(key), 0)
    grandchild.result()


def use_until_closed(m, key, ends):
    """Operate on the map until it is closed; append to ends how the operations ended."""
    try:
        while True:
            m.update(word(key), word(key))
            m.lookup(word(key))
            len(m)
    except shmrhash.MapClosed:
        ends.append("closed")
    except BaseException as unexpected:
        ends.append(repr(unexpected))


def close_under_threads(gate, name, rounds, threads_count):
    """Close a handle that threads are using; return the error that each thread got. Each must get
    one."""
    told = []
    for _ in range(rounds):
        m = RHashMap.open(name)
        ends = []
        threads = [
            threading.Thread(target=use_until_closed, args=(m, key, ends))
            for key in range(threads_count)
        ]
        for thread in threads:
            thread.start()
        while not all(word(key) in m for key in range(threads_count)):
            pass
        m.close()
        for thread in threads:
            thread.join(30)
        told += ends
    return told


def fork_under_threads(gate, m, children, threads_count):
    """Fork while threads are inside operations; the children use the same handle."""
    ends = []
    threads = [
        threading.Thread(target=use_until_closed, args=(m, key, ends))
        for key in range(threads_count)
    ]
    for thread in threads:
        thread.start()
    for number in range(children):
        in_child(write_and_fork, m, 1000 + 2 * number)
    m.close()
    for thread in threads:
        thread.join(30)
    return ends
