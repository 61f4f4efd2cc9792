"""Our map and the kernel's hash map get the same operations, and must give equal results and
errnos.

Hypothesis generates geometries and sequences; the maps are tiny, so that they are full most of the
time. Every difference between the two must be listed in DIFFERENCES.
"""

import contextlib
import hashlib
import itertools
from pathlib import Path
from typing import NamedTuple

import hypothesis
import hypothesis.strategies as st
import pytest
from hypothesis.stateful import (
    RuleBasedStateMachine,
    get_state_machine_test,
    initialize,
    invariant,
    precondition,
    rule,
)
from support.kernel import bpf
from support.kernel.bpf import F_NO_PREALLOC, F_RDONLY, F_WRONLY, LOCK_BYTES, Answer, KernelMap
from support.kernel.kernel_jobs import add_one, fill_case
from support.kernel.permissions import CALLS, INVALID_FLAGS, LACKS, UPDATE_VALID, expected
from support.kernel.sides import ANY, EXIST, LOCK, NOEXIST, OurMap, answer, take_pairs, walk

import shmrhash
from shmrhash import RHashMap

COMPARE_EVERY_STEPS = 11
FREEZE_AFTER_STEPS = 25  # so most steps of a sequence run on a map that can be written

KEY_SIZES = st.sampled_from([1, 2, 3, 4, 7, 8, 9, 16, 64, 511, 512]) | st.integers(1, 512)
VALUE_SIZES = st.sampled_from([1, 4, 7, 8, 9, 16, 68, 256, 4095, 4096]) | st.integers(1, 4096)
# With the first pair, all keys of 8 bytes have the same hash. The kernel's seed cannot be chosen.
HASH_SEEDS = st.sampled_from([(0, 0), (0, 1), (7, 1 << 32)]) | st.tuples(
    *[st.integers(0, (1 << 64) - 1)] * 4
)
LOCKED_VALUE_MIN = 8
ENTRIES = st.sampled_from([1, 2, 3, 5, 8, 20, 50])

UPDATE_FLAGS = st.sampled_from(UPDATE_VALID * 4 + INVALID_FLAGS)
OTHER_FLAGS = st.sampled_from([0] * 16 + [LOCK] * 8 + [1, 2, 5, 6, *INVALID_FLAGS])


class Difference(NamedTuple):
    """One way in which the two maps may differ: what each does, and why ours is right."""

    kernel: str
    ours: str
    why: str


# A difference marked "demonstrated" has a test below that shows both sides of it. The state
# machine allows a difference only in the rules whose docstrings name it.
DIFFERENCES = {
    "order": Difference(
        "keys come bucket by bucket, the latest first",
        "keys come in the order of their hash",
        "neither promises an order: what a walk meets is compared as a set, with its size",
    ),
    "absent previous key": Difference(  # demonstrated
        "get_next_key of an absent key begins again with the first key; RHASH does the same",
        "it goes on where the absent key would stand",
        "stronger: a walk survives the deletion of the key it stands at",
    ),
    "deleted cursor": Difference(
        "RHASH's cursor is a key, and EAGAIN once it is deleted; HASH's is a bucket's number",
        "a cursor is a place in the order, which no deletion removes",
        "stronger: test_a_deleted_cursor_does_no_harm",
    ),
    "short batches": Difference(
        "a batch of HASH ends before a bucket that does not fit, or with ENOSPC; RHASH's does not",
        "a batch is full unless nothing follows",
        "RHASH differs from HASH",
    ),
    "update during a walk": Difference(  # demonstrated
        "HASH links a new element at the head of its bucket: the walk may never end",
        "an update leaves the key where it is; RHASH does the same",
        "RHASH differs from HASH",
    ),
    "a batch of none": Difference(  # demonstrated
        "lookup batches with a count of 0 do nothing and succeed, after looking at the flags",
        "EINVAL; update_batch and delete_batch of no keys succeed as the kernel's do",
        "nothing can be told from an empty batch without a cursor, so a loop would not end",
    ),
    "flags of update_batch": Difference(  # demonstrated
        "NOEXIST and EXIST are EINVAL; so in RHASH",
        "each element is treated as update() with these flags would",
        "stronger: it is what a loop of updates does",
    ),
    "flags without permission": Difference(  # demonstrated
        "permission comes first; in lookup and lookup_and_delete, flags: EPERM, or EINVAL",
        "handles for reading: permission comes first. For writing, and on a frozen map: flags",
        "both refuse what is wrong twice; only the errno's name differs",
    ),
    "freezing a map with locks": Difference(  # demonstrated
        "a map with a struct bpf_spin_lock in the value is never frozen: errno 524",
        "every map can be frozen",
        "stronger: locks are not in the value here",
    ),
    "reported flags": Difference(  # demonstrated
        "BPF_F_RDONLY and BPF_F_WRONLY are the descriptor's: map_flags is without them",
        "map_flags is what create() was given",
        "it is a report only: other handles are not bound by it on either side",
    ),
    "F_LOCK": Difference(  # demonstrated
        "needs a struct bpf_spin_lock in the value, else EINVAL; these bytes read as zeros",
        "every element can be locked, and nothing is reserved in the value",
        "stronger: on maps with a lock both say the same",
    ),
    "preallocation": Difference(  # demonstrated
        "HASH without BPF_F_NO_PREALLOC is a map",
        "EINVAL",
        "RHASH differs from HASH",
    ),
    "zero seed": Difference(  # demonstrated
        "HASH with BPF_F_ZERO_SEED is a map",
        "EINVAL",
        "RHASH differs from HASH",
    ),
    "long keys": Difference(  # demonstrated
        "HASH takes keys of more than 65,535 bytes",
        "E2BIG",
        "RHASH differs from HASH",
    ),
    "presizing": Difference(  # demonstrated
        "HASH with map_extra is EINVAL",
        "map_extra is the hint for the first size",
        "RHASH differs from HASH",
    ),
}


# How the row of docs/explanation/kernel.md begins for each difference between ours and RHASH.
IN_DOCUMENTS = {
    "absent previous key": "get_next_key of an absent key",
    "deleted cursor": "a batch whose cursor was deleted returns EAGAIN",
    "a batch of none": "a lookup batch with count 0",
    "flags of update_batch": "update_batch refuses NOEXIST and EXIST",
    "flags without permission": "permission is checked before flags",
    "freezing a map with locks": "freeze of a map with a lock in its value",
    "reported flags": "map_flags is reported without",
    "F_LOCK": "BPF_F_LOCK needs a bpf_spin_lock in the value",
}

NO_FREEZING = "524"  # ENOTSUPP, an errno inside the kernel, for which Python has no name


def may_write(machine):
    return not machine.frozen


def key_number(index, size, salt):
    """Return the index-th key of a salt: keys differ in one byte, whose place the salt decides."""
    key = bytearray(hashlib.shake_128(f"{salt}".encode()).digest(size))
    key[salt % size] = index
    return bytes(key)


class Both(RuleBasedStateMachine):
    """A pair of maps, the kernel's and ours; run_machine() makes subclasses with our map's name."""

    name = None

    def __init__(self):
        super().__init__()
        self.steps = 0
        self.ours = self.kernel = None
        self.frozen = False

    @initialize(
        key_size=KEY_SIZES,
        value_size=VALUE_SIZES,
        entries=ENTRIES,
        salt=st.integers(0, 999),
        hash_seeds=HASH_SEEDS,
        lock=st.booleans(),
    )
    def create(self, key_size, value_size, entries, salt, hash_seeds, lock):
        value_size = max(value_size, LOCKED_VALUE_MIN) if lock else value_size
        geometry = {"key_size": key_size, "value_size": value_size, "max_entries": entries}
        self.kernel = KernelMap.create(**geometry, lock=lock)
        self.ours = OurMap(RHashMap.create(self.name, **geometry, _seeds=hash_seeds))
        # One and a half times as many keys as fit, so that the map is often full.
        self.keys = [key_number(i, key_size, salt) for i in range(entries + entries // 2 + 2)]

    def teardown(self):
        try:
            if self.ours is not None:
                self.compare_contents()
                self.ours.m.check()
        finally:
            for side in (self.ours, self.kernel):
                if side is not None:
                    side.close()
            with contextlib.suppress(shmrhash.SegmentMissing):
                shmrhash.unlink(self.name)

    def any_key(self, data):
        return self.keys[data.draw(st.integers(0, len(self.keys) - 1), label="key index")]

    def any_keys(self, data):
        places = st.integers(0, len(self.keys) - 1)
        drawn = data.draw(
            st.lists(places, min_size=1, max_size=len(self.keys)), label="key indices"
        )
        return [self.keys[place] for place in drawn]

    def any_value(self, data):
        return self.value_number(data.draw(st.integers(0, 1 << 16), label="value"))

    def value_number(self, number):
        """Return the value of a number; the bytes in which the kernel keeps a lock are zeros."""
        value = hashlib.shake_128(f"value {number}".encode()).digest(self.kernel.value_size)
        return bytes(LOCK_BYTES) + value[LOCK_BYTES:] if self.kernel.lock else value

    def any_count(self, data):
        return data.draw(st.integers(1, len(self.keys) + 1), label="count")

    def same(self, operation):
        """Perform the operation on both sides, whose answers must be equal; return the answer."""
        kernel, ours = operation(self.kernel), operation(self.ours)
        assert kernel == ours
        return kernel

    def same_with(self, flags, operation):
        """As same(), with flags. Differs: "F_LOCK"; the kernel's map then gets no LOCK."""
        if self.kernel.lock or not flags & LOCK:
            return self.same(lambda side: operation(side, flags))
        assert operation(self.kernel, flags).error == "EINVAL"
        kernel, ours = operation(self.kernel, flags & ~LOCK), operation(self.ours, flags)
        assert kernel == ours
        return kernel

    def pairs_of_kernel(self):
        keys = walk(self.kernel, len(self.keys))
        assert len(keys) == len(set(keys))
        return {key: self.kernel.lookup(key).result for key in keys}

    def compare_contents(self):
        pairs = self.pairs_of_kernel()
        assert len(pairs) == len(self.ours.m)
        for key in self.keys:
            assert pairs.get(key) == self.ours.m.lookup(key)

    # ---- one key ----

    @rule(data=st.data(), flags=OTHER_FLAGS)
    def lookup(self, data, flags):
        key = self.any_key(data)

        self.same_with(flags, lambda side, flags: side.lookup(key, flags))

    @precondition(may_write)
    @rule(data=st.data(), flags=UPDATE_FLAGS)
    def update(self, data, flags):
        key, value = self.any_key(data), self.any_value(data)

        self.same_with(flags, lambda side, flags: side.update(key, value, flags))

    @precondition(may_write)
    @rule(data=st.data())
    def delete(self, data):
        key = self.any_key(data)

        self.same(lambda side: side.delete(key))

    @precondition(may_write)
    @rule(data=st.data(), flags=OTHER_FLAGS)
    def lookup_and_delete(self, data, flags):
        key = self.any_key(data)

        self.same_with(flags, lambda side, flags: side.lookup_and_delete(key, flags))

    @precondition(may_write)
    @rule(data=st.data(), flags=st.sampled_from([ANY, NOEXIST, LOCK, LOCK | NOEXIST]))
    def fill(self, data, flags):
        """Fill up to the limit and beyond: both sides refuse the same keys."""
        value, start = self.any_value(data), data.draw(st.integers(0, len(self.keys)))

        for key in self.keys[start:] + self.keys[:start]:
            self.same_with(flags, lambda side, flags, key=key: side.update(key, value, flags))

    @precondition(may_write)
    @rule(data=st.data())
    def empty_in_part(self, data):
        kept = data.draw(st.integers(1, 4), label="every which is kept")

        for index, key in enumerate(self.keys):
            if index % kept or kept == 1:
                self.same(lambda side, key=key: side.delete(key))

    # ---- handles for one way, and frozen maps ----

    @rule(data=st.data(), flags=UPDATE_FLAGS, kind=st.sampled_from(["reader", "writer"]))
    def use_a_handle_for_one_way(self, data, flags, kind):
        flags = flags if self.kernel.lock else flags & ~LOCK
        handle_flags = F_RDONLY if kind == "reader" else F_WRONLY
        kind = f"frozen {kind}" if self.frozen else kind
        with (
            self.kernel.reopen(handle_flags) as kernel,
            self.ours.reopen(handle_flags) as ours,
        ):
            self.use_with_less(data, kernel, ours, kind, flags)

    @precondition(lambda self: self.frozen)
    @rule(data=st.data(), flags=UPDATE_FLAGS)
    def use_a_frozen_map(self, data, flags):
        self.use_with_less(data, self.kernel, self.ours, "frozen", flags & ~LOCK)

    def use_with_less(self, data, kernel, ours, kind, flags):
        """Differs: "flags without permission", "flags of update_batch"."""
        for name, call in CALLS.items():
            key, value = self.any_key(data), self.any_value(data)
            wanted = [expected(side, kind, name, flags) for side in ("kernel", "ours")]
            if name == "update_batch" and flags & (NOEXIST | EXIST):
                continue
            errors = [call.do(side, key, value, flags).error for side in (kernel, ours)]
            assert errors == (wanted if wanted[0] else errors[:1] * 2), (kind, name)

    @precondition(lambda self: self.steps > FREEZE_AFTER_STEPS and not self.frozen)
    @rule(by_a_writer=st.booleans())
    def freeze(self, by_a_writer):
        """Differs: "freezing a map with locks"; ours is then not frozen."""
        with self.kernel.reopen(F_RDONLY) as kernel, self.ours.reopen(F_RDONLY) as ours:
            assert ours.freeze() == ("EPERM", None)
            assert kernel.freeze() == (NO_FREEZING if self.kernel.lock else "EPERM", None)
        if self.kernel.lock:
            assert self.kernel.freeze() == (NO_FREEZING, None)
            return
        flags = F_WRONLY if by_a_writer else 0
        with self.kernel.reopen(flags) as kernel, self.ours.reopen(flags) as ours:
            assert kernel.freeze() == ours.freeze() == ("", None)
        self.frozen = True
        assert self.ours.m.frozen

    @precondition(lambda self: self.frozen)
    @rule()
    def freeze_again(self):
        assert self.same(lambda side: side.freeze()) == ("EPERM", None)

    # ---- walks ----

    @rule()
    def walk_by_keys(self):
        """Differs: "order"."""
        kernel, ours = walk(self.kernel, len(self.keys)), walk(self.ours, len(self.keys))

        assert sorted(kernel) == sorted(ours)

    @rule(data=st.data())
    def next_key(self, data):
        """Differs: "order", "absent previous key". Every key but the last has a successor."""
        key = self.any_key(data)
        kernel, ours = self.kernel.get_next_key(key), self.ours.get_next_key(key)

        for said in (kernel, ours):
            assert said.error == "ENOENT" or not self.kernel.lookup(said.result).error
            assert said.result != key
        if not self.kernel.lookup(key).error:
            followed = [key]
            while not ours.error:
                followed.append(ours.result)
                assert len(followed) <= len(self.keys)
                ours = self.ours.get_next_key(ours.result)
            whole = walk(self.ours, len(self.keys))
            assert whole[whole.index(key) :] == followed
        elif len(self.ours.m) < self.ours.m.max_entries and not self.frozen:
            assert self.ours.update(key, self.any_value(data)) == ("", None)
            assert self.ours.get_next_key(key) == ours
            assert self.ours.delete(key) == ("", None)

    @rule()
    def iterate(self):
        """Iteration by Python's protocols gives what the kernel's walk gives."""
        pairs = self.pairs_of_kernel()
        m = self.ours.m

        assert sorted(pairs) == sorted(m)
        assert sorted(pairs.items()) == sorted(m.items())
        assert sorted(pairs.values()) == sorted(m.values())

    @rule(stop_at=st.integers(1, 60))
    def for_each(self, stop_at):
        """The callback of for_each, which no system call offers, gets the pairs of the kernel's
        walk."""
        pairs = self.pairs_of_kernel()
        met = []

        def callback(key, value):
            met.append((bytes(key), bytes(value)))
            return len(met) == stop_at

        assert min(stop_at, len(pairs)) == self.ours.m.for_each(callback)
        assert len(met) == len(dict(met)) == min(stop_at, len(pairs))
        assert set(met) <= set(pairs.items())

    # ---- batches ----

    @rule(data=st.data(), flags=st.sampled_from([0, LOCK]))
    def lookup_batches(self, data, flags):
        """Differs: "order", "short batches"."""
        count = self.any_count(data)
        kernel_flags = flags if self.kernel.lock else 0

        kernel = take_pairs(self.kernel.lookup_batch, count, len(self.keys), kernel_flags)
        assert kernel == sorted(self.pairs_of_kernel().items())
        assert kernel == take_pairs(self.ours.lookup_batch, count, len(self.keys), flags)
        first = self.ours.lookup_batch(None, count, flags)
        assert min(count, len(kernel)) == len(first.result.pairs)
        assert (len(kernel) <= count) == (first.error == "ENOENT")

    @precondition(may_write)
    @rule(flags=st.sampled_from([1, 2, 5, 6, *INVALID_FLAGS]), data=st.data())
    def refused_batches(self, flags, data):
        keys = self.any_keys(data)

        for method in ("lookup_batch", "lookup_and_delete_batch"):
            self.same(lambda side, method=method: getattr(side, method)(None, 3, flags))
        # The kernel does not report the count of a refused batch: it leaves the count unchanged.
        self.same(lambda side: side.delete_batch(keys, flags).error)

    @precondition(may_write)
    @rule(data=st.data(), all_of_them=st.booleans(), flags=st.sampled_from([0, LOCK]))
    def take_batches(self, data, all_of_them, flags):
        """Differs: "order", "short batches". The kernel's map repeats a batch of ours by keys."""
        count = self.any_count(data)
        kernel_flags = flags if self.kernel.lock else 0
        if all_of_them:
            method = self.kernel.lookup_and_delete_batch
            taken = take_pairs(method, count, len(self.keys), kernel_flags)
            method = self.ours.lookup_and_delete_batch
            assert taken == take_pairs(method, count, len(self.keys), flags)
            return
        there = self.pairs_of_kernel()

        taken = self.ours.lookup_and_delete_batch(None, count, flags)

        assert min(count, len(there)) == len(taken.result.pairs)
        assert (len(there) <= count) == (taken.error == "ENOENT")
        for key, value in taken.result.pairs:
            assert self.kernel.lookup_and_delete(key, kernel_flags) == ("", value)

    @precondition(may_write)
    @rule(data=st.data(), flags=UPDATE_FLAGS)
    def update_batch(self, data, flags):
        """Differs: "flags of update_batch"; on the kernel's side it is then a loop of updates."""
        keys, number = self.any_keys(data), data.draw(st.integers(0, 1 << 16), label="value")
        values = [self.value_number(number + i) for i in range(len(keys))]
        if flags not in UPDATE_VALID or not flags & (NOEXIST | EXIST):
            self.same_with(
                flags, lambda side, flags: count_of(side.update_batch(keys, values, flags))
            )
            return
        assert self.kernel.update_batch(keys, values, flags) == ("EINVAL", 0)

        self.same_with(flags, lambda side, flags: update_each_or_all(side, keys, values, flags))

    @precondition(may_write)
    @rule(data=st.data(), flags=st.sampled_from([0, LOCK]))
    def delete_batch(self, data, flags):
        keys = self.any_keys(data)

        self.same_with(flags, lambda side, flags: side.delete_batch(keys, flags))

    @invariant()
    def same_contents(self):
        self.steps += 1
        if self.ours is not None and self.steps % COMPARE_EVERY_STEPS == 0:
            self.compare_contents()
            self.ours.m.check()


def update_each_or_all(side, keys, values, flags):
    """Return the Answer of a loop of updates on the kernel's side, or of a batch on ours."""
    if isinstance(side, OurMap):
        return count_of(side.update_batch(keys, values, flags))
    for done, (key, value) in enumerate(zip(keys, values, strict=True)):
        error = side.update(key, value, flags).error
        if error:
            return Answer(error, done)
    return Answer("", len(keys))


def count_of(said):
    """Return the answer with a count, which is 0 if the batch was refused before its first
    element."""
    return said if said.result is not None else Answer(said.error, 0)


def run_machine(seed, name, examples):
    settings = hypothesis.settings(
        max_examples=examples,
        stateful_step_count=40,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    print(f"seed {seed}")
    machine = type("Both", (Both,), {"name": name})
    hypothesis.seed(seed)(get_state_machine_test(machine, settings=settings))()


@pytest.mark.parametrize(
    "examples",
    [
        25,
        pytest.param(250, marks=pytest.mark.thorough),
        pytest.param(3_000, marks=pytest.mark.long),
    ],
)
def test_random_operations_give_equal_answers_on_both_maps(
    kernel_permits_all, seed, map_name, examples
):
    """W1, W2, K1: any sequence of operations gives the same results and errnos on both maps."""
    run_machine(seed, map_name, examples)


# ---- creation ----

CREATION_FLAGS = [2, F_RDONLY, F_WRONLY, F_RDONLY | F_WRONLY, 1 << 7, 1 << 8, 3 << 7, 1 << 30]

# Arguments that HASH and RHASH check in the same way; the others are in DIFFERENCES.
CREATIONS = {
    "key_size": [0, 1, 8, 512, 65_535],
    "value_size": [0, 1, 4096, (4 << 20) - 48 - 512, (4 << 20), 0xFFFF_FFFF],
    "max_entries": [0, 1, 100, (1 << 31) + 1],
    "map_flags": [
        F_NO_PREALLOC,
        *(F_NO_PREALLOC | flag for flag in CREATION_FLAGS),
    ],
}


@pytest.mark.parametrize("map_flags", CREATIONS["map_flags"], ids=hex)
def test_creation_is_refused_alike_on_both_sides(kernel_permits, map_name, map_flags):
    """K1: sizes, limits and flags that HASH and RHASH treat alike give one errno, or a map each."""
    for key_size, value_size, max_entries in itertools.product(
        CREATIONS["key_size"], CREATIONS["value_size"], CREATIONS["max_entries"]
    ):
        assert_created_alike(
            map_name,
            key_size=key_size,
            value_size=value_size,
            max_entries=max_entries,
            map_flags=map_flags,
        )


def assert_created_alike(name, **geometry):
    kernel = creation_by_kernel(**geometry)
    if kernel == "ENOMEM":
        return  # depends on this machine, for elements of megabytes
    assert kernel == creation_by_us(name, **geometry), geometry


def creation_by_kernel(**geometry):
    fd = bpf.create(**geometry)
    if fd >= 0:
        KernelMap(fd, 0, 0).close()
    return bpf.error_name(fd)


def creation_by_us(name, **geometry):
    said = answer(lambda: RHashMap.create(name, **geometry).close())
    if not said.error:
        shmrhash.unlink(name)
    return said.error


# ---- the differences themselves ----


def test_every_difference_from_rhash_is_documented():
    """K1: each difference of the list above is in docs/explanation/kernel.md, except "order"."""
    of_hash = {name for name, said in DIFFERENCES.items() if said.why.startswith("RHASH differs")}
    page = Path(__file__).parents[2] / "docs" / "explanation" / "kernel.md"
    rows = page.read_text().replace("`", "").splitlines()

    assert IN_DOCUMENTS.keys() == DIFFERENCES.keys() - of_hash - {"order"}
    for words in IN_DOCUMENTS.values():
        assert any(row.startswith(f"| {words}") for row in rows), words


@pytest.mark.parametrize(
    ("difference", "change", "kernel", "ours"),
    [
        ("preallocation", {"map_flags": 0}, "", "EINVAL"),
        ("zero seed", {"map_flags": F_NO_PREALLOC | 1 << 6}, "", "EINVAL"),
        ("long keys", {"key_size": 65_536}, "", "E2BIG"),
        ("presizing", {"map_extra": 1}, "EINVAL", ""),
    ],
)
def test_difference_at_creation_exists(kernel_permits, map_name, difference, change, kernel, ours):
    """K1: each listed difference at creation exists; one that is gone must leave the list."""
    geometry = {"key_size": 8, "value_size": 8, "max_entries": 4} | change

    assert difference in DIFFERENCES
    assert kernel == creation_by_kernel(**geometry)
    assert ours == creation_by_us(map_name, **geometry)


FLAGS_LOOKED_AT_IN_ANOTHER_ORDER = {
    "reader": {"lookup_and_delete"},
    "writer": {"lookup_batch", "lookup_and_delete_batch"},
    "frozen": {"update", "lookup_and_delete_batch", "update_batch", "delete_batch"},
    "frozen reader": {"lookup_and_delete"},
    "frozen writer": {
        *("update", "lookup_batch", "lookup_and_delete_batch", "update_batch", "delete_batch")
    },
}


@pytest.fixture
def both(make_kernel_map, make_map):
    """Two maps, the kernel's and ours, each with room for 4 entries and with the keys 1 and 2."""
    geometry = {"key_size": 1, "value_size": 1, "max_entries": 4}
    sides = make_kernel_map(**geometry), OurMap(make_map(**geometry))
    for side, key in itertools.product(sides, (b"\1", b"\2")):
        assert side.update(key, key) == ("", None)
    return sides


@pytest.mark.parametrize("kind", LACKS)
def test_difference_in_flags_without_permission_exists(kernel_permits_all, both, kind):
    """K1: DIFFERENCES["flags without permission"], for every operation that is refused."""
    differing = set()
    if "frozen" in kind:
        assert [side.freeze() for side in both] == [("", None)] * 2
    if kind != "frozen":
        both = [side.reopen(F_RDONLY if "reader" in kind else F_WRONLY) for side in both]

    for name, call in CALLS.items():
        for flags in [ANY, NOEXIST, EXIST, *INVALID_FLAGS]:
            wanted = [expected(side, kind, name, flags) for side in ("kernel", "ours")]
            if wanted[0]:
                assert wanted == [call.do(side, b"\1", b"\1", flags).error for side in both]
                differing |= {name} if wanted[0] != wanted[1] else set()

    assert differing == FLAGS_LOOKED_AT_IN_ANOTHER_ORDER[kind]
    if kind != "frozen":
        for side in both:
            side.close()


def test_difference_in_freezing_a_map_with_locks_exists(
    kernel_permits_all, make_kernel_map, make_map
):
    """K1: DIFFERENCES["freezing a map with locks"]."""
    geometry = {"key_size": 1, "value_size": 8, "max_entries": 4}
    kernel, ours = make_kernel_map(**geometry, lock=True), OurMap(make_map(**geometry))

    assert kernel.freeze() == (NO_FREEZING, None)
    assert kernel.update(b"1", bytes(8)) == ("", None)
    assert ours.freeze() == ("", None)
    assert ours.update(b"1", bytes(8)) == ("EPERM", None)


@pytest.mark.parametrize("flag", [F_RDONLY, F_WRONLY], ids=["rdonly", "wronly"])
def test_difference_in_reported_flags_exists(kernel_permits_all, make_kernel_map, make_map, flag):
    """K1: DIFFERENCES["reported flags"]; on both sides another handle may read and write."""
    flags = F_NO_PREALLOC | flag
    geometry = {"key_size": 1, "value_size": 8, "max_entries": 4, "map_flags": flags}
    kernel, ours = make_kernel_map(**geometry), OurMap(make_map(**geometry))

    assert [F_NO_PREALLOC, flags] == [kernel.info()["map_flags"], ours.m.map_flags]
    for side in (kernel, ours):
        with side.reopen(0) as other:
            assert other.update(b"1", bytes(8)) == ("", None)
            assert other.lookup(b"1") == ("", bytes(8))


def test_difference_after_an_absent_key_exists(both):
    """W1: DIFFERENCES["absent previous key"]: the kernel's walk begins again, ours goes on."""
    kernel, ours = both
    first, second = walk(kernel, 2)
    assert kernel.delete(second) == ("", None)
    assert kernel.get_next_key(second) == ("", first)

    first, second = walk(ours, 2)
    assert ours.delete(second) == ("", None)
    assert ours.get_next_key(second) == ("ENOENT", None)


def test_difference_in_the_flags_of_update_batch_exists(both):
    """W1: DIFFERENCES["flags of update_batch"]."""
    assert [side.update_batch([b"\3"], [b"\3"], NOEXIST).error for side in both] == ["EINVAL", ""]


@pytest.mark.parametrize("method", ["lookup_batch", "lookup_and_delete_batch"])
def test_difference_in_a_batch_of_no_entries_exists(both, method):
    """W1: DIFFERENCES["a batch of none"]; neither side takes an entry."""
    answers = [getattr(side, method)(None, 0).error for side in both]

    assert answers == ["", "EINVAL"]
    assert [sorted(walk(side, 2)) for side in both] == [[b"\1", b"\2"]] * 2


def test_difference_in_an_update_during_a_walk_exists(make_kernel_map, make_map):
    """I1: DIFFERENCES["update during a walk"]: 500 keys; the kernel's endless walk is cut off."""
    geometry = {"key_size": 8, "value_size": 24, "max_entries": 500}
    met = []
    for side in (make_kernel_map(**geometry), OurMap(make_map(**geometry))):
        fill_case(side, 500)
        count, said = 0, side.get_next_key()
        while not said.error and count < 5_000:
            count += 1
            add_one(side, said.result)
            said = side.get_next_key(said.result)
        met.append(count)

    assert met == [5_000, 500]


def test_difference_in_f_lock_exists(both):
    """K1: DIFFERENCES["F_LOCK"]: the kernel's map has no lock in its value."""
    answers = [
        [
            side.lookup(b"\1", LOCK).error,
            side.update(b"\1", b"\1", EXIST | LOCK).error,
            side.lookup_batch(None, 4, LOCK).error,
            side.update_batch([b"\1"], [b"\1"], LOCK).error,
            side.delete_batch([b"\2"], LOCK).error,
            side.lookup_and_delete(b"\1", LOCK).error,
        ]
        for side in both
    ]

    assert answers == [["EINVAL"] * 6, ["", "", "ENOENT", "", "", ""]]
