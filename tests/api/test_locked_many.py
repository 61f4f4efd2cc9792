"""locked_many() of RHashMap and SharedDict: several keys change in one step (L2)."""

import contextlib
import signal
import threading

import pytest
from support.children import Child, in_child
from support.expiry import let_pass
from support.jobs import word
from support.locking import locked_elsewhere

import shmrhash
from shmrhash import BPF_F_LOCK, RHashMap, SharedDict

SIZE = 16


class Rows:
    """An RHashMap whose keys and values are numbers here."""

    def __init__(self, handle):
        self.handle = handle

    def locked_many(self, numbers, **more):
        if "default" in more:
            more["default"] = self.bytes_of(more["default"])
        return self.handle.locked_many([word(number) for number in numbers], **more)

    @staticmethod
    def bytes_of(number):
        return word(number) * (SIZE // 8)

    def store(self, section, number):
        section[:] = self.bytes_of(number)

    def delete(self, key):
        self.handle.delete(word(key))

    def entries(self):
        return {
            int.from_bytes(key, "little"): int.from_bytes(value[:8], "little")
            for key, value in self.handle.items()
        }

    def expect_free(self, number):
        self.handle.update(word(number), self.handle[word(number)], BPF_F_LOCK)


class Entries:
    """A SharedDict of numbers to objects, each of at least 1,000 bytes and so stored by
    reference."""

    def __init__(self, handle):
        self.handle = handle

    def locked_many(self, numbers, **more):
        if "default" in more:
            more["default"] = self.object_of(more["default"])
        return self.handle.locked_many([("key", number) for number in numbers], **more)

    @staticmethod
    def object_of(number):
        return [number, "x" * (1000 + number)]

    def store(self, section, number):
        section.value = self.object_of(number)

    def delete(self, key):
        del self.handle["key", key]

    def entries(self):
        for value in self.handle.values():
            assert value == self.object_of(value[0])
        return {key[1]: value[0] for key, value in self.handle.items()}

    def expect_free(self, number):
        with self.handle.locked(("key", number), timeout=1):
            pass


@pytest.fixture(params=[Rows, Entries])
def several(request, make_map, map_name):
    """A map or dict with five keys, 0 to 4, whose values are 10 to 14."""
    with contextlib.ExitStack() as stack:
        if request.param is Rows:
            handle = make_map(value_size=SIZE, timeout=0.05)
        else:
            handle = SharedDict.create(map_name, key=object, value=object, max_entries=100)
            stack.enter_context(handle)
            stack.callback(handle.unlink)
        found = request.param(handle)
        with found.locked_many(range(5), default=0) as sections:
            for number, section in enumerate(sections):
                found.store(section, 10 + number)
        yield found
        if not handle.closed:
            assert handle.check()["exact"]


BEFORE = {number: 10 + number for number in range(5)}


def test_all_values_are_stored_and_all_deletions_made_at_the_end(several):
    """L2: readers find the old values of all keys until the block ends."""
    with several.locked_many([3, 0, 4, 1]) as (three, zero, four, one):
        several.store(three, 93)
        several.store(zero, 90)
        four.delete()
        one.delete()
        assert several.entries() == BEFORE

    assert several.entries() == {0: 90, 2: 12, 3: 93}
    for number in (0, 2, 3):
        several.expect_free(number)


def test_keys_that_are_all_deleted_go_together(several):
    with several.locked_many(range(5)) as sections:
        for section in sections:
            section.delete()

    assert several.entries() == {}


@pytest.mark.parametrize("count", [0, 1])
def test_few_keys_are_no_exception(several, count):
    with several.locked_many(range(count)) as sections:
        for section in sections:
            several.store(section, 90)

    assert several.entries() == BEFORE | ({0: 90} if count else {})


def test_nothing_is_stored_if_the_block_raises(several):
    with pytest.raises(ZeroDivisionError), several.locked_many([0, 1], default=7) as (zero, one):  # noqa: PT012
        several.store(zero, 90)
        one.delete()
        raise ZeroDivisionError

    assert several.entries() == BEFORE
    several.expect_free(0)
    several.expect_free(1)


def test_section_that_is_rolled_back_is_left_out(several):
    with several.locked_many([0, 1, 2]) as (zero, one, two):
        for section in (zero, one, two):
            several.store(section, 90)
        one.roll_back()

    assert several.entries() == BEFORE | {0: 90, 2: 90}


def test_default_is_inserted_first_and_stays(several):
    with pytest.raises(ZeroDivisionError), several.locked_many([8, 9], default=50) as sections:  # noqa: PT012
        several.store(sections[0], 90)
        raise ZeroDivisionError

    assert several.entries() == BEFORE | {8: 50, 9: 50}


def test_nothing_is_stored_if_a_key_was_deleted_inside_the_block(several):
    """L2: if one key was deleted, the block stores no value, not even those of the other keys."""
    block = several.locked_many([0, 1, 2])
    for section in block.__enter__():
        several.store(section, 90)
    several.delete(1)
    with pytest.raises(shmrhash.KeyGone):
        block.__exit__(None, None, None)

    assert several.entries() == {number: 10 + number for number in (0, 2, 3, 4)}
    several.expect_free(0)
    several.expect_free(2)


def test_absent_key_and_a_key_given_twice_lock_nothing(several):
    with pytest.raises(shmrhash.KeyNotFound):
        several.locked_many([0, 1, 9]).__enter__()
    with pytest.raises(shmrhash.InvalidArgument, match="twice"):
        several.locked_many([0, 1, 0])

    several.expect_free(0)
    several.expect_free(1)


def test_key_that_this_thread_has_locked_is_a_deadlock(several):
    with several.locked_many([0]), pytest.raises(shmrhash.DeadlockError):
        several.locked_many([1, 0]).__enter__()

    several.expect_free(1)


def test_closed_map_is_refused_but_an_open_block_ends(several):
    block = several.locked_many([0, 1])
    for section in block.__enter__():
        several.store(section, 90)
    name = several.handle.name
    several.handle.close()
    with pytest.raises(shmrhash.MapClosed):
        several.locked_many([2]).__enter__()
    block.__exit__(None, None, None)

    trust = {} if type(several) is Rows else {"trust": True}
    with type(several.handle).open(name, **trust) as again:
        assert type(several)(again).entries() == BEFORE | {0: 90, 1: 90}


def test_frozen_map_stores_nothing(several):
    block = several.locked_many([0, 1])
    for section in block.__enter__():
        several.store(section, 90)
    several.handle.freeze()
    with pytest.raises(shmrhash.FrozenMap):
        block.__exit__(None, None, None)

    assert several.entries() == BEFORE


def test_child_of_fork_cannot_end_the_block_and_the_parent_can(several):
    block = several.locked_many([0, 1])
    for section in block.__enter__():
        several.store(section, 90)

    def leave():
        with pytest.raises(shmrhash.Error, match="parent"):
            block.__exit__(None, None, None)
        return several.entries()

    assert in_child(leave) == BEFORE
    block.__exit__(None, None, None)

    assert several.entries() == BEFORE | {0: 90, 1: 90}


def test_two_callers_with_opposite_orders_do_not_deadlock(several):
    """L2: two threads add to two values in opposite orders; no addition is lost."""
    turns = 200

    def work(keys):
        for _ in range(turns):
            with several.locked_many(keys, timeout=60) as sections:
                for key, section in zip(keys, sections, strict=True):
                    before = (
                        section.value[0] if hasattr(section, "value") else section.unpack("Q")[0]
                    )
                    several.store(section, before + 1 + key)

    threads = [threading.Thread(target=work, args=(keys,)) for keys in ([0, 1], [1, 0])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert several.entries() == BEFORE | {0: 10 + 2 * turns, 1: 11 + 4 * turns}


# ---- of one kind ----


def test_more_keys_than_contexts_are_refused_and_nothing_is_lost(make_map):
    """L2: more keys than the 4,096 contexts raise an exception, and the map works as before."""
    m = make_map(max_entries=5000)
    keys = [word(number) for number in range(4200)]
    for key in keys:
        m[key] = bytes(8)

    with pytest.raises(shmrhash.TooManyProcesses, match="4200 keys"):
        m.locked_many(keys).__enter__()
    with m.locked_many(keys[:2000]) as values:
        for value in values:
            value[:] = word(9)

    assert [m[key] for key in keys] == [word(9)] * 2000 + [bytes(8)] * 2200


def test_timeout_is_that_of_a_key(make_map):
    m = make_map(value_size=SIZE)
    for number in range(3):
        m[word(number)] = bytes(SIZE)
    with locked_elsewhere(m, word(1)), pytest.raises(shmrhash.LockTimeout):
        m.locked_many([word(0), word(1)], timeout=0.02).__enter__()

    m.update(word(0), bytes(SIZE), BPF_F_LOCK)


def test_value_that_cannot_be_stored_stops_all(map_name):
    """L2: a value that has no pickle, or no room in the dict, stops the storing of all values."""
    with SharedDict.create(map_name, key=int, value=object, max_bytes=1 << 20) as d:
        d[1], d[2] = "one", "two"
        for wrong, error in ((lambda: 0, Exception), (b"x" * (2 << 20), shmrhash.OutOfMemory)):
            with pytest.raises(error), d.locked_many([1, 2]) as (one, two):  # noqa: PT012
                one.value = "eins"
                two.value = wrong

            assert dict(d) == {1: "one", 2: "two"}
        d.check()
        d.unlink()


class EndsASection:
    """A value whose pickling ends another section, or deletes its key."""

    def __init__(self, act):
        self.act = act

    def __reduce__(self):
        self.act()
        return int, (7,)


def test_pickling_that_ends_another_section_stops_all(map_name):
    with SharedDict.create(map_name, key=int, value=object) as d:
        d[1], d[2], d[3] = 1, 2, 3
        with pytest.raises(shmrhash.InvalidArgument), d.locked_many([1, 2, 3]) as (one, two, three):  # noqa: PT012
            one.value = 10
            two.value = EndsASection(three.roll_back)
            three.value = 30

        assert dict(d) == {1: 1, 2: 2, 3: 3}
        with d.locked_many([1, 2, 3]) as (one, two, three):
            one.value = EndsASection(one.delete)
            two.value = EndsASection(three.delete)
            three.value = 30

        assert dict(d) == {2: 7}
        d.check()
        d.unlink()


def test_entry_that_expires_in_the_block_stops_all(map_name):
    with SharedDict.create(map_name, key=int, value=int, ttl=3600) as d:
        d[1] = 1
        entered, ttl = False, 0.03
        while not entered:  # ends, since each round doubles the entry's life
            d.set(2, 2, ttl=ttl)
            with pytest.raises(KeyError) as refused, d.locked_many([1, 2]) as (one, two):  # noqa: PT012
                entered = True
                one.value = two.value = 9
                let_pass(ttl)
            ttl *= 2

        assert refused.type is shmrhash.KeyGone
        assert d[1] == 1
        d.check()
        d.unlink()


def test_long_keys_keep_their_objects(map_name):
    with SharedDict.create(map_name, key=str, value=object) as d:
        keys = ["a key of many bytes " * 20, "another key of many bytes " * 20]
        for key in keys:
            d[key] = "before"
        with d.locked_many(keys) as (one, two):
            one.value = "after " * 1000
            two.delete()

        assert dict(d) == {keys[0]: "after " * 1000}
        assert d.check()["exact"]
        d.unlink()


def test_killed_owner_of_many_keys_leaves_them_free(make_map):
    """C1, L2: a process killed inside the block has stored nothing, and its keys become free."""
    m = make_map(value_size=SIZE)
    keys = [word(number) for number in range(50)]
    for key in keys:
        m[key] = bytes(SIZE)

    def work():
        kept = m.locked_many(keys).__enter__()
        for value in kept:
            value[:] = b"n" * SIZE
        signal.raise_signal(signal.SIGKILL)

    Child(work).join()

    with m.locked_many(keys, timeout=5) as values:
        assert {bytes(value) for value in values} == {bytes(SIZE)}
    assert RHashMap.open(m.name).check()["exact"]
