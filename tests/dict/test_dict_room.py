"""Dicts that run out of memory: a full file system, and max_bytes (M1)."""

import errno
import os
import random

import pytest
from support import creation_jobs
from support.workers import run_together

import shmrhash
from shmrhash import Kptr, RHashMap, SharedDict

SIZES = [40, 900, 4088, 5000, 70_000, 300_000]  # small blocks, a larger one, runs of pages


def body(number, size):
    """Return the bytes of a value; they differ for every number and size."""
    return random.Random(f"{number} {size}").randbytes(size)


def in_tiny_tmpfs(tmp_path, monkeypatch, job, *arguments, size):
    """Run the job with the dict's directory on a tmpfs of size bytes."""
    monkeypatch.setenv("SHMRHASH_DIR", str(tmp_path))
    (result,) = run_together(
        "fork", (creation_jobs.in_private_tmpfs, str(tmp_path), size, job, *arguments)
    )
    if result == "not permitted":
        pytest.skip("mounting a tmpfs is not permitted here")
    return result


def store_until_full(d, first, size):
    """Store until the file system is full; return the error and the next number."""
    number = first
    try:
        while True:
            d[number] = body(number, size)
            number += 1
    except shmrhash.SegmentFull as refused:
        return refused, number


def expect_all(d, numbers, size):
    return [number for number in numbers if d[number] != body(number, size)]


def fill_and_free(gate, size, ballast_size):
    """Fill the file system with objects, use the full dict, free memory, and store again."""
    limits = {"max_entries": 1 << 20, "max_bytes": 1 << 34}
    ballast = creation_jobs.segment_folder() / "ballast"
    ballast.write_bytes(bytes(ballast_size))
    here, *others = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {here})
    with SharedDict.create("tiny", key=int, value=bytes, timeout=2.0, **limits) as d:
        full, count = store_until_full(d, 0, size)
        d.check()
        wrong = expect_all(d, range(count), size)
        # A new value is a new object and takes room, so some entries are deleted first.
        for number in range(0, count, 3):
            del d[number]
        # The freed objects are in this CPU's depot, and are found from another CPU.
        os.sched_setaffinity(0, {others[0] if others else here})
        for number in range(0, count, 6):
            d[number] = body(number, size)
        d.check()
        with SharedDict.open("tiny", key=int, value=bytes) as other:
            wrong += expect_all(other, range(0, count, 6), size)
        ballast.unlink()
        _, upto = store_until_full(d, count, size)
        d.check()
        wrong += expect_all(d, range(count, upto), size)
        d.clear()
        d.check()
        left = d.info()["objects"]
        d.unlink()
    return {
        "full": (type(full).__name__, full.errno, isinstance(full, MemoryError)),
        "message": str(full),
        "counts": (count, upto - count),
        "wrong": wrong,
        "left": (left["count"], left["bytes_in_use"]),
    }


@pytest.mark.parametrize("size", SIZES)
def test_a_full_file_system_refuses_stores_only(tmp_path, monkeypatch, size):
    """M1: on a full file system stored values stay unchanged, the budget counts their bytes, and
    stores succeed again once there is room."""
    room = 24 << 20 if size > 4096 else 4 << 20
    result = in_tiny_tmpfs(tmp_path, monkeypatch, fill_and_free, size, room // 8, size=room)

    assert result["full"] == ("SegmentFull", errno.ENOMEM, True)
    assert "free" in result["message"]
    assert min(result["counts"]) > 0
    assert result["wrong"] == []
    assert result["left"] == (0, 0)


def store_beside_ballast(gate, seed):
    """Repeatedly take all free memory away, store and delete, and give the memory back."""
    rng = random.Random(seed)
    ballast = creation_jobs.segment_folder() / "ballast"
    limits = {"max_entries": 1 << 20, "max_bytes": 1 << 34}
    model = {}
    refusals = 0
    with SharedDict.create("tiny", key=int, value=bytes, timeout=2.0, **limits) as d:
        for _ in range(60):
            creation_jobs.take_everything(ballast)
            for _ in range(30):
                number, size = rng.randrange(60), rng.choice(SIZES)
                try:
                    d[number] = body(number, size)
                except shmrhash.SegmentFull:
                    refusals += 1
                else:
                    model[number] = size
                if rng.random() < 0.3:
                    assert (d.pop(number, None) is not None) == (model.pop(number, 0) > 0)
            d.check()
            ballast.unlink()
            for number in rng.sample(range(60), 10):
                d[number] = body(number, SIZES[number % len(SIZES)])
                model[number] = SIZES[number % len(SIZES)]
            d.check()
        found = {number: len(d[number]) for number in d}
        wrong = [number for number, size in model.items() if d[number] != body(number, size)]
        d.unlink()
    return refusals, found == model, wrong


def test_a_file_system_filled_by_other_files_refuses_stores_only(tmp_path, monkeypatch, seed):
    """M1: another file takes every free byte at many moments; stores are refused, and none ends in
    SIGBUS."""
    refusals, same, wrong = in_tiny_tmpfs(
        tmp_path, monkeypatch, store_beside_ballast, seed, size=24 << 20
    )

    assert refusals > 0
    assert same
    assert wrong == []


def test_a_kptr_too_large_for_max_bytes_is_refused_and_changes_nothing(map_name):
    """M1: kptr_xchg() raises OutOfMemory, and the previous object stays."""
    limits = {"max_entries": 10, "fields": [Kptr(0)], "max_bytes": 1 << 16}
    with RHashMap.create(map_name, key_size=8, value_size=8, **limits) as m:
        m.unlink()
        m[bytes(8)] = bytes(8)
        m.kptr_xchg(bytes(8), b"before", 0)
        with pytest.raises(shmrhash.OutOfMemory):
            m.kptr_xchg(bytes(8), os.urandom(1 << 17), 0)

        assert m.kptr_get(bytes(8), 0) == b"before"
        m.check()


# ---- two processes and one key ----


def store_in_order(gate, d, who, count):
    """Store under the same keys and in the same order as the other process, so that both are mostly
    at the same key."""
    gate.wait()
    for number in range(count):
        d[number] = body(who, 40 + number % 60)


def store_under_one(gate, d, who, count):
    """Replace the value of one key, and sometimes delete the key."""
    gate.wait()
    for number in range(count):
        d[0] = body(who, 40 + number % 60)
        if number % 50 == 0:
            d.pop(0, None)


@pytest.mark.parametrize("job", [store_in_order, store_under_one])
def test_racing_stores_under_one_key_lose_no_object(make_dict, job):
    """W1, C1: the loser of a race to insert a key takes its object back, and stores it by an
    update."""
    d = make_dict(key=int, value=bytes, max_entries=1 << 16, max_bytes=1 << 24)
    count = 20_000

    run_together("fork", *((job, d, who, count) for who in range(2)))

    d.check()
    assert set(d) == (set(range(count)) if job is store_in_order else {0})
    assert all(value in (body(0, len(value)), body(1, len(value))) for value in d.values())
    assert d.info()["objects"]["count"] == len(d)


@pytest.mark.parametrize(
    "limits",
    [
        {"value_size": 1 << 21, "max_entries": 1 << 31},
        {"value_size": 8, "max_entries": 10, "fields": [Kptr(0)], "max_bytes": 1 << 60},
    ],
    ids=["entries", "objects"],
)
def test_a_map_larger_than_the_address_space_is_refused(map_name, limits):
    """M1: a map larger than the address space is refused with TooLarge, and no map is made."""
    with pytest.raises(shmrhash.TooLarge):
        RHashMap.create(map_name, key_size=8, **limits)
    with pytest.raises(shmrhash.SegmentMissing):
        RHashMap.open(map_name)


def update_the_last_key(gate, m, rounds):
    """Race in each round to insert the only entry for which the map has room."""
    refused = 0
    for number in range(rounds):
        key = number.to_bytes(8, "little")
        gate.wait()
        try:
            m[key] = bytes(8)
        except shmrhash.MapFull:
            refused += 1
        gate.wait()
        m[key] = b"\1" * 8
        gate.wait()
        assert m.pop(key, b"\1" * 8) == b"\1" * 8
    return refused


def test_the_loser_of_a_race_for_the_last_free_entry_updates_its_key(make_map):
    """W2: the loser may be refused while the winner inserts the key, but not once the key is there;
    and one of the two always inserts it."""
    m = make_map(max_entries=1)
    rounds = 1500

    refused = run_together("fork", *((update_the_last_key, m, rounds) for _ in range(2)))

    assert sum(refused) < rounds / 2
    assert len(m) == 0
