"""Every walk delivers each entry that stays exactly once, and absent entries never (I1).

There are two oracles. In the first half, one process interleaves random operations with the steps
of a walk, and knows at each moment which entries are in the map: thousands of schedules, cheap, and
repeatable by their seed. In the second, walkers in processes of their own judge their walks by the
keys that no other process touches, while other processes fill and empty the map through several
doublings.
"""

import random

import pytest
from support import walks
from support.jobs import word
from support.walks import FRESH_WAYS, WAYS, value_of
from support.words import COLLIDING
from support.workers import METHODS, run_together

import shmrhash
from shmrhash import RHashMap

# With COLLIDING all keys of 8 bytes hash to 0: one group of equal hashes, in one long chain. With
# the two pairs of seeds after it small keys share most bits of their hashes.
SEEDS = [None, None, COLLIDING, (0, 1), (7, 1 << 32)]

# ---- exactly once, by schedules of one process ----


class Disturber:
    """Inserts, deletes and changes entries during walks, and records which entries were there when.

    present: the entries now. staying: the keys that were there all the time since begin().
    seen: by key, the values that it had since begin().
    """

    KEYS = 600

    def __init__(self, m, other, rng):
        self.m = m
        self.handles = [m, other]
        self.rng = rng
        self.present = {}
        self.version = 0

    def begin(self, handle):
        """Begin a record; operate through handle 0 (the walker's own), handle 1, or both if
        None."""
        self.handle = handle
        self.staying = set(self.present)
        self.seen = {key: {value} for key, value in self.present.items()}

    def someone(self):
        return self.handles[self.rng.randrange(2) if self.handle is None else self.handle]

    def store(self, keys):
        self.version += 1
        pairs = {key: value_of(key, 8, self.version) for key in keys}
        if len(pairs) == 1:
            for key, value in pairs.items():
                self.someone()[key] = value
        elif pairs:
            self.someone().update_many(list(pairs), list(pairs.values()))
        for key, value in pairs.items():
            self.seen.setdefault(key, set()).add(value)
        self.present |= pairs

    def remove(self, keys):
        if len(keys) == 1:
            del self.someone()[keys[0]]
        elif keys:
            self.someone().delete_batch(keys)
        for key in keys:
            del self.present[key]
        self.staying -= set(keys)

    def act(self):
        """Store or remove one key, a few keys, or enough keys to resize the table several times."""
        rng = self.rng
        count = rng.choice([1, 1, 1, 3, 10, self.KEYS // 2, self.KEYS])
        if rng.random() < 0.5:
            self.store([word(rng.randrange(self.KEYS)) for _ in range(count)])
        elif self.present:
            keys = sorted(self.present)
            kept = rng.randrange(12) if count > 10 else max(0, len(keys) - count)
            self.remove(rng.sample(keys, len(keys) - min(kept, len(keys))))

    def walk(self, way, calm):
        """Walk once and judge the walk; one in `calm` of its steps is followed by an operation."""
        rng = self.rng
        found = []
        fresh = self.handle == 0 and way in FRESH_WAYS

        def step(key, value):
            assert key not in found, f"{way.__name__} delivers {key.hex()} twice"
            assert value is None or value in self.seen.get(key, ()), f"{way.__name__}, {key.hex()}"
            if fresh:
                assert key in self.present
                assert value is None or value == self.present[key]
            found.append(key)
            if rng.random() < 1 / calm and len(found) < 3 * self.KEYS:
                self.act()

        way(self.m, rng, step)
        missed = self.staying - set(found)
        assert not missed, f"{way.__name__} misses {len(missed)} of {len(self.staying)} keys"
        assert set(found) <= self.seen.keys(), (
            f"{way.__name__} delivers a key that was never in the map"
        )


def disturb_many_walks(make_map, map_name, rng, schedules, monkeypatch):
    """Walk `schedules` times on maps with all kinds of hashes; return how often tables resized."""
    monkeypatch.setattr(shmrhash._batch, "_CHUNK_ENTRIES", 5)
    resizes = 0
    for number, seeds in enumerate(SEEDS):
        name = f"{map_name}-{number}"
        m = make_map(name, max_entries=2000, _seeds=seeds)
        Disturber.KEYS = 120 if seeds == COLLIDING else 600
        with RHashMap.open(name) as other:
            disturber = Disturber(m, other, rng)
            for _ in range(schedules // len(SEEDS)):
                disturber.begin(rng.choice([0, 1, None]))
                disturber.act()
                disturber.begin(disturber.handle)
                disturber.walk(rng.choice(WAYS), rng.choice([2, 10, 50]))
        info = m.info()
        resizes += info["grows"] + info["shrinks"]
    return resizes


def test_disturbed_walks_deliver_exactly_once(make_map, map_name, seed, monkeypatch):
    """I1: a thousand walks deliver exactly once although the map changes between their steps."""
    resizes = disturb_many_walks(make_map, map_name, random.Random(seed), 1000, monkeypatch)

    assert resizes > 1000


@pytest.mark.long
def test_disturbed_walks_deliver_exactly_once_for_long(make_map, map_name, seed, monkeypatch):
    """I1: a hundred thousand walks deliver exactly once although the map changes."""
    disturb_many_walks(make_map, map_name, random.Random(seed), 100_000, monkeypatch)


# ---- exactly once, under processes ----


def churned_walks(method, m, seed, seconds, churned_each):
    """Run two walkers and two churners; return how often each way of walking was used."""
    rng = random.Random(seed)
    staying = rng.sample(range(1 << 40), rng.choice([5, 300, 1500]))
    churned = range(1 << 41, (1 << 41) + 2 * churned_each)
    for number in staying:
        m[word(number)] = value_of(word(number), m.value_size)
    walk = walks.walk_again_and_again
    *done, _, _ = run_together(
        method,
        *((walk, m, staying, churned, seconds, random.Random(seed + i)) for i in range(2)),
        *((walks.churn_in_waves, m, churned[i::2], random.Random(seed + 2 + i)) for i in range(2)),
        timeout_s=60 + 3 * seconds,
    )
    return {way: sum(walker[way] for walker in done) for way in done[0]}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.thorough
def test_walks_deliver_exactly_once_while_others_churn(make_map, seed, duration, method):
    """I1: walks deliver exactly once while the table is doubled and halved several times."""
    m = make_map(max_entries=20_000)

    walked_by_way = churned_walks(method, m, seed, duration, 4000)

    print(f"seed {seed}: {walked_by_way}")
    assert all(walked_by_way.values())
    info = m.info()
    assert info["grows"] > 1000 < info["shrinks"]
    m.check()


@pytest.mark.parametrize(
    ("geometry", "churned"),
    [
        pytest.param({"_seeds": COLLIDING}, 40, id="colliding"),
        pytest.param({"value_size": 264}, 500, id="large values", marks=pytest.mark.thorough),
        pytest.param({"key_size": 8}, 12, id="few", marks=pytest.mark.thorough),
    ],
)
def test_walks_of_other_maps_deliver_exactly_once(make_map, seed, duration, geometry, churned):
    """I1, R2: walks of one long chain, of values of several words and of moving entries are
    exact."""
    m = make_map(**geometry)

    assert all(churned_walks("fork", m, seed, duration / 2, churned).values())

    m.check()


@pytest.mark.long
@pytest.mark.parametrize("churned", [10, 100, 1000, 10_000, 50_000])
def test_walks_deliver_exactly_once_for_long(make_map, seed, duration, churned):
    """I1: walks of tables of all sizes deliver exactly once, for as long as --duration says."""
    m = make_map(max_entries=200_000)

    assert all(churned_walks("fork", m, seed, 10 * duration, churned).values())
