"""Our map with the interface of bpf.KernelMap, so that one test can use either and compare the two.

An operation of a side returns an Answer: the errno's name, and the result. The kernel returns
ENOENT where our lookup and get_next_key return None, and with the last batch of a series.
"""

import errno

import shmrhash
from shmrhash import RHashMap
from support.kernel.bpf import F_RDONLY, F_WRONLY, Answer, Chunk, pieces

ANY, NOEXIST, EXIST, LOCK = 0, 1, 2, 4


def answer(operation):
    """Return the Answer of operation(); if it raises, the result is the exception's count, if
    any."""
    try:
        return Answer("", operation())
    except shmrhash.Error as error:
        return Answer(errno.errorcode[error.errno], getattr(error, "count", None))


class OurMap:
    """One handle of an RHashMap."""

    def __init__(self, m):
        self.m = m
        self.key_size = m.key_size
        self.value_size = m.value_size

    def reopen(self, flags):
        """Return another handle of the same map, with F_RDONLY or F_WRONLY."""
        one_way = {"read_only": flags == F_RDONLY, "write_only": flags == F_WRONLY}
        return OurMap(RHashMap.open(self.m.name, **one_way))

    def close(self):
        self.m.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def found(self, operation):
        said = answer(operation)
        return Answer("ENOENT") if said == ("", None) else said

    def lookup(self, key, flags=0):
        return self.found(lambda: self.m.lookup(key, flags))

    def update(self, key, value, flags=0):
        return answer(lambda: self.m.update(key, value, flags))

    def delete(self, key):
        return answer(lambda: self.m.delete(key))

    def lookup_and_delete(self, key, flags=0):
        return answer(lambda: self.m.lookup_and_delete(key, flags))

    def get_next_key(self, key=None):
        return self.found(lambda: self.m.get_next_key(key))

    def freeze(self):
        return answer(self.m.freeze)

    def take_batch(self, method, cursor, count, flags):
        said = answer(lambda: method(cursor=cursor, count=count, flags=flags))
        if said.error:
            return Answer(said.error, Chunk([], None))
        batch = said.result
        pairs = zip(
            pieces(contents(batch.keys), self.key_size, batch.count),
            pieces(contents(batch.values), self.value_size, batch.count),
            strict=True,
        )
        error = "ENOENT" if batch.cursor is None else ""
        return Answer(error, Chunk(list(pairs), batch.cursor))

    def lookup_batch(self, cursor=None, count=1, flags=0):
        return self.take_batch(self.m.lookup_batch, cursor, count, flags)

    def lookup_and_delete_batch(self, cursor=None, count=1, flags=0):
        return self.take_batch(self.m.lookup_and_delete_batch, cursor, count, flags)

    def update_batch(self, keys, values, flags=0):
        return answer(lambda: self.m.update_batch(b"".join(keys), b"".join(values), flags))

    def delete_batch(self, keys, flags=0):
        return answer(lambda: self.m.delete_batch(b"".join(keys), flags))


def contents(array):
    """Return the bytes of a batch's keys or values, which are an array, or bytes without NumPy."""
    return array.tobytes() if hasattr(array, "tobytes") else bytes(array)


# What tests do on either side.


def walk(side, limit):
    """Return all keys in the side's order, by get_next_key; more than limit keys are an endless
    walk."""
    keys = []
    said = side.get_next_key()
    while not said.error:
        keys.append(said.result)
        if len(keys) > limit:
            raise AssertionError(f"more than {limit} keys, {len(set(keys))} of them different")
        said = side.get_next_key(keys[-1])
    if said.error != "ENOENT":
        raise AssertionError(f"a walk ended with {said.error}")
    return keys


def take_all(method, step, limit, flags=0):
    """Return the chunks of a whole series of batches; a step that is too small for a bucket is
    doubled."""
    chunks = []
    cursor = None
    for _ in range(2 * limit + 20):
        said = method(cursor, step, flags)
        if said.error == "ENOSPC":  # BPF_MAP_TYPE_HASH cannot return a part of a bucket
            step *= 2
            continue
        if said.error not in ("", "ENOENT"):
            raise AssertionError(f"a batch ended with {said.error}")
        chunks.append(said.result.pairs)
        cursor = said.result.cursor
        if said.error:
            return chunks
    raise AssertionError(f"the batches do not end: {len(chunks)} of them")


def take_pairs(method, step, limit, flags=0):
    """Return the pairs of a whole series of batches, sorted, as their order is not promised."""
    return sorted(pair for chunk in take_all(method, step, limit, flags) for pair in chunk)
