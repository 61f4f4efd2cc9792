"""gc(), ephemeral maps, and the counters of recovery."""

import os
import shutil

import pytest
from support import stepping
from support.children import kill, stays
from support.words import word
from support.workers import Crew

import shmrhash
from shmrhash import RHashMap

HELD_WORDS = 256


def put(m, key, number):
    m.update(word(key), word(number) * (m.value_size // 8))


@pytest.fixture(autouse=True)
def own_directory(monkeypatch):
    """A directory of segments for these tests only, as gc() looks at all maps."""
    folder = f"{os.environ.get('SHMRHASH_DIR', '/dev/shm')}/shmrhash-gc-{os.getpid()}"
    os.mkdir(folder, 0o700)
    with monkeypatch.context() as patch:
        patch.setenv("SHMRHASH_DIR", folder)
        yield folder
    shutil.rmtree(folder)


@pytest.fixture
def ephemeral(map_name):
    """A function that creates an ephemeral map of that name."""

    def create(name=map_name, **more):
        return RHashMap.create(
            name, key_size=8, value_size=8, max_entries=64, ephemeral=True, **more
        )

    return create


def open_and_put(name, key):
    m = RHashMap.open(name)
    put(m, key, key)
    return m


# ---- gc ----


def test_gc_recovers_dead_processes_and_leaves_live_ones(make_map):
    """C2: dead processes of all maps are recovered; names, entries and live processes stay."""
    maps = [make_map(), make_map()]
    dead = [stays(open_and_put, m.name, key) for m in maps for key in (1, 2, 3)]
    living = stays(open_and_put, maps[0].name, 4)
    kill(*dead)

    report = shmrhash.gc()

    assert report["maps"] == 2
    assert report["recovered"] == 6
    assert not report["removed"]
    assert not report["skipped"]
    assert [len(m) for m in maps] == [4, 3]
    assert [m.info()["processes"] for m in maps] == [2, 1]
    assert shmrhash.gc()["recovered"] == 0
    assert maps[0].info()["processes"] == 2
    kill(living)


def test_gc_with_names_removes_maps_without_users(make_map, map_name):
    """C2: maps in use by any process keep their names; the others lose theirs."""
    held = make_map()
    names = [f"{map_name}-left", f"{map_name}-killed", f"{map_name}-read", f"{map_name}-forked"]
    for name in names:
        RHashMap.create(name, key_size=8, value_size=8, max_entries=8).close()
    kill(stays(open_and_put, names[1], 1))
    reader = stays(lambda: RHashMap.open(names[2], read_only=True))
    user = stays(open_and_put, names[3], 1)

    report = shmrhash.gc(names=True)

    assert sorted(report["removed"]) == sorted(names[:2])
    assert sorted(os.listdir(os.environ["SHMRHASH_DIR"])) == sorted([held.name, *names[2:]])
    kill(reader, user)
    assert sorted(shmrhash.gc(names=True)["removed"]) == sorted(names[2:])


def test_gc_passes_over_files_that_are_no_maps(make_map, own_directory):
    """H1: other files stay as they are; a damaged map is skipped with a reason."""
    make_map()
    foreign = os.path.join(own_directory, "foreign")
    damaged = os.path.join(own_directory, "damaged")
    with open(foreign, "wb") as file:
        file.write(b"something else")
    RHashMap.create("damaged", key_size=8, value_size=8, max_entries=8).close()
    with open(damaged, "r+b") as file:
        file.seek(16)
        file.write(b"\xff" * 8)

    report = shmrhash.gc(names=True)

    assert list(report["skipped"]) == ["damaged"]
    assert os.path.exists(foreign)
    assert os.path.exists(damaged)
    os.unlink(foreign)
    os.unlink(damaged)


# ---- ephemeral maps ----


def test_last_close_removes_the_name(ephemeral, map_name):
    first = ephemeral()
    second = RHashMap.open(map_name)
    first.close()
    assert os.path.exists(stepping.segment_path(map_name))
    put(second, 1, 1)

    second.close()

    assert not os.path.exists(stepping.segment_path(map_name))
    with pytest.raises(shmrhash.SegmentMissing):
        RHashMap.open(map_name)


def test_close_does_not_remove_the_name_of_a_successor(ephemeral, map_name):
    """The name was unlinked, and a second map has it when the first one is closed."""
    first = ephemeral()
    first.unlink()
    second = ephemeral()

    first.close()

    put(second, 1, 1)
    RHashMap.open(map_name).close()
    second.close()
    assert not os.path.exists(stepping.segment_path(map_name))


def test_killed_users_leave_the_name_to_gc(ephemeral, map_name):
    """C2: gc() removes the name when all users are killed, but not while one is left."""

    def create_and_put(key):
        m = ephemeral()
        put(m, key, key)
        return m

    first = stays(create_and_put, 1)
    others = [stays(open_and_put, map_name, key) for key in (2, 3, 4)]
    kill(first, *others[:2])
    assert not shmrhash.gc()["removed"]
    with RHashMap.open(map_name) as m:
        assert len(m) == 4
    assert os.path.exists(stepping.segment_path(map_name))
    kill(others[2])

    assert shmrhash.gc()["removed"] == [map_name]

    assert not os.path.exists(stepping.segment_path(map_name))


def test_killed_users_leave_the_name_to_the_next_open(ephemeral, map_name):
    """C2: open() finds that no user is left, and raises; open_or_create() makes a new map."""

    def create_and_put():
        m = ephemeral()
        put(m, 1, 1)
        return m

    kill(stays(create_and_put))
    with pytest.raises(shmrhash.SegmentMissing):
        RHashMap.open(map_name)
    assert not os.path.exists(stepping.segment_path(map_name))

    kill(stays(create_and_put))
    with RHashMap.open_or_create(
        map_name, key_size=8, value_size=8, max_entries=64, ephemeral=True
    ) as m:
        assert not len(m)
    assert not os.path.exists(stepping.segment_path(map_name))


def test_child_of_fork_keeps_an_ephemeral_map(ephemeral, map_name):
    """C3: the parent closes the map; a child that uses the inherited handle is its last user."""
    m = ephemeral()
    child = stays(put, m, 1, 1)
    m.close()
    assert os.path.exists(stepping.segment_path(map_name))

    with RHashMap.open(map_name) as again:
        assert len(again) == 1
        kill(child)

    assert not os.path.exists(stepping.segment_path(map_name))


@pytest.mark.usefixtures("stepper")
def test_name_is_removed_when_the_last_two_users_close_together(ephemeral, map_name):
    """The last of two to close removes the name, also if each saw the other before it closed."""
    first = ephemeral()
    put(first, 1, 1)
    second = stepping.stop_at_change(
        lambda: open_and_put(map_name, 2),
        lambda own: own.close(),
        stepping.Segment(stepping.segment_path(map_name)),
        1,
    )
    with second:
        first.close()
        second.wait()

    assert not os.path.exists(stepping.segment_path(map_name))


def close_together(gate, name, rounds):
    for _ in range(rounds):
        m = RHashMap.open(name)
        gate.wait()  # all are attached
        gate.wait()  # the creator has closed
        m.close()
        gate.wait()
        gate.wait()  # there is a new map


def test_name_is_removed_when_many_users_close_together(ephemeral, map_name):
    """The test above with three processes and random timing, 40 times."""
    rounds, count = 40, 3
    crew = Crew("fork", count + 1)
    first = ephemeral()
    for _ in range(count):
        crew.start(close_together, map_name, rounds)
    left = 0
    for _ in range(rounds):
        crew.gate.wait()
        first.close()
        crew.gate.wait()
        crew.gate.wait()
        if os.path.exists(stepping.segment_path(map_name)):
            left += 1
            os.unlink(stepping.segment_path(map_name))
        first = ephemeral()
        crew.gate.wait()
    crew.join()
    first.close()

    assert left == 0, f"{left} of {rounds} times the name stayed"


# ---- counters ----


def dead_in_the_middle(m, operate, part):
    """Kill a child after this part of operate's changes."""
    segment = stepping.Segment(stepping.segment_path(m.name))
    number = stepping.changes_until(lambda: RHashMap.open(m.name), operate, segment, part)
    with stepping.stop_at_change(lambda: RHashMap.open(m.name), operate, segment, number) as child:
        child.kill()


@pytest.mark.usefixtures("stepper")
def test_info_counts_recoveries(make_map):
    """C2: one death in an update, which is finished, and one in an insert, which is undone."""
    m = make_map(value_size=8 * HELD_WORDS)
    put(m, 1, 1)
    fresh = m.info()
    for counter in ("recoveries", "owners_found_dead", "recovery_ns_max"):
        assert fresh[counter] == 0
    assert fresh["operations_finished"] == fresh["operations_undone"] == 0

    # An update writes the redo buffer, commits, and copies the buffer into the element.
    dead_in_the_middle(m, lambda own: put(own, 1, 9), 3 / 4)
    assert m[word(1)] == word(9) * HELD_WORDS
    put(m, 1, 10)
    finished = m.info()
    assert finished["operations_finished"] == 1
    assert finished["operations_undone"] == 0
    assert finished["recoveries"] == finished["owners_found_dead"] == 1
    assert 0 < finished["recovery_ns_max"] < 1_000_000_000

    # The child dies while it copies a value into a new element.
    dead_in_the_middle(m, lambda own: put(own, 2, 9), 1 / 2)
    assert shmrhash.gc()["recovered"] == 1
    undone = m.info()
    assert undone["operations_finished"] == 1
    assert undone["operations_undone"] == 1
    assert undone["recoveries"] == undone["owners_found_dead"] == 2
    assert word(2) not in m


def test_info_counts_live_processes(make_map):
    """C3: info() counts live processes, by inherited and by opened handles, and no dead ones."""
    m = make_map()
    put(m, 0, 1)
    assert m.info()["processes"] == 1
    children = [stays(put, m, 1, 1), stays(open_and_put, m.name, 2)]
    assert m.info()["processes"] == 3
    assert set(m.info()["pids"]) == {os.getpid(), *(child.pid for child in children)}

    kill(*children)

    assert m.info()["pids"] == [os.getpid()]
