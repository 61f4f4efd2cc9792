"""Histories of entries that expire are linearizable, the clock included, also under kills (W1, X1).

expiring.py has the processes and the operations of their histories; below are dicts with one
mistake each, which must be noticed.
"""

import time

import pytest
from support.history.checker import ABSENT, FULL, MISSING, OK, rendered
from support.history.expiring import Entries, Round, is_right, refused_wrongly, timed, with_clock
from support.history.expiring import Step as Call

import shmrhash
from shmrhash import SharedDict

MAX_ENTRIES = 4
ROUNDS_MAX = 1_000  # enough to notice a mistake, which takes 1 to 100 rounds
OFTEN = 3
ATTEMPTS_MAX = 10_000  # enough for OFTEN kills and refusals, which take some dozen rounds


@pytest.fixture
def small_dict(map_name):
    with SharedDict(map_name, key=int, value=int, ttl=3600.0, max_entries=MAX_ENTRIES) as d:
        yield d
        d.check()
        d.unlink()


class Wrong(AssertionError):
    """No order explains the operations on some key, or a refusal had no reason."""


def judge(calls, seed, max_entries=MAX_ENTRIES):
    for key in sorted({call.key for call in calls}):
        if not is_right(calls, key):
            history = with_clock([call for call in calls if call.key == key])
            raise Wrong(f"key {key}, seed {seed}\n{rendered(history)}")
    if wrong := refused_wrongly(calls, max_entries):
        raise Wrong(f"refused with room, seed {seed}: {wrong[0]}")


def play(entries, seed, number, **facts):
    """Play a round on an empty dict, judge it, and return how many workers were killed and how many
    calls were refused."""
    entries.d.clear()
    seed = (seed, number)
    played = Round(entries, seed, **facts)
    if played.killed:
        entries.d.check()
    calls = played.history()
    judge(calls, seed)
    refusals = sum(call.operation.name == "refused" for call in calls)
    return played.killed, refusals


@pytest.mark.parametrize(
    "kills",
    [
        pytest.param(False, id="no kills", marks=pytest.mark.thorough),
        pytest.param(True, id="kills"),
    ],
)
def test_histories_of_expiring_entries_are_linearizable(small_dict, seed, duration, kills):
    """W1, C1, X1: an entry expires when its deadline, which may be renewed, passes, and not before.
    A call is refused only if the dict is full of entries that live or are being stored."""
    end = time.monotonic() + 0.5 * duration
    number = killed = refused = 0
    while time.monotonic() < end or refused < OFTEN or (kills and killed < OFTEN):
        number += 1
        one = play(Entries(small_dict), seed, number, kills=kills)
        killed, refused = killed + one[0], refused + one[1]
        assert number < ATTEMPTS_MAX
    print(f"{number} rounds, {killed} kills, {refused} refusals")


# ---- mistakes must be noticed ----


class ExpiresEarly(Entries):
    def store(self, key, number, ttl_s):
        return super().store(key, number, ttl_s / 2)


class ExpiresLate(Entries):
    def store(self, key, number, ttl_s):
        return super().store(key, number, ttl_s + 0.0005)


class TouchesNothing(Entries):
    def touch(self, key, ttl_s):
        return OK if key in self.d else MISSING


class RemovesWhatWasRenewed(Entries):
    """A dict that finds an entry expired and deletes it later, even if it was renewed in
    between."""

    def get(self, key):
        found = super().get(key)
        if found is ABSENT:
            time.sleep(0.0003)
            super().remove(key)
        return found


class RefusesForAWhile(Entries):
    """A dict that refuses every new key for three milliseconds after a refusal, without trying."""

    until = 0

    def store(self, key, number, ttl_s):
        if time.monotonic_ns() < self.until and key not in self.d:
            raise shmrhash.MapFull
        try:
            return super().store(key, number, ttl_s)
        except shmrhash.MapFull:
            self.until = time.monotonic_ns() + 3_000_000
            raise


class RefusesWhatIsThere(Entries):
    """A dict that refuses an update of a present key when it is full."""

    def store(self, key, number, ttl_s):
        if len(self.d) >= MAX_ENTRIES:
            raise shmrhash.MapFull
        return super().store(key, number, ttl_s)


@pytest.mark.parametrize(
    "kind",
    [
        ExpiresEarly,
        ExpiresLate,
        TouchesNothing,
        RemovesWhatWasRenewed,
        RefusesForAWhile,
        RefusesWhatIsThere,
    ],
)
@pytest.mark.thorough
def test_wrong_way_to_expire_is_noticed(small_dict, seed, kind):
    """W1, X1: some round of a dict with a mistake has no order, or a refusal without a reason."""

    def play_often():
        for number in range(ROUNDS_MAX):
            play(kind(small_dict), seed, number)

    with pytest.raises(Wrong):
        play_often()


# ---- the judge itself ----


def call(process, start, end, name, key=0, number=0, ttl_ns=0, gives=OK):
    return timed(process, Call(name, key, number, ttl_ns / 1e9), gives, start, end, end or 1_000)


STORED = call(0, 0, 10, "store", number=7, ttl_ns=100)  # its deadline is in 100 to 110

HISTORIES = {
    "there before its deadline": (True, [STORED, call(1, 50, 60, "get", gives=7)]),
    "gone before its deadline": (False, [STORED, call(1, 50, 60, "get", gives=ABSENT)]),
    "gone after its deadline": (True, [STORED, call(1, 120, 130, "get", gives=ABSENT)]),
    "there after its deadline": (False, [STORED, call(1, 120, 130, "get", gives=7)]),
    "either, at about its deadline": (
        True,
        [STORED, call(1, 104, 105, "get", gives=7), call(1, 106, 107, "get", gives=ABSENT)],
    ),
    "it does not come back": (
        False,
        [STORED, call(1, 104, 105, "get", gives=ABSENT), call(1, 106, 107, "get", gives=7)],
    ),
    "renewed in time": (
        True,
        [
            STORED,
            call(1, 20, 30, "touch", number=8, ttl_ns=500),
            call(1, 200, 210, "get", gives=7),
        ],
    ),
    "renewed in time, and removed": (
        False,
        [
            STORED,
            call(1, 20, 30, "touch", number=8, ttl_ns=500),
            call(1, 200, 210, "get", gives=ABSENT),
        ],
    ),
    "renewed too late": (
        False,
        [STORED, call(1, 120, 130, "touch", number=8, ttl_ns=500)],
    ),
    "stored by a process that was killed, and there for its time to live": (
        True,
        [
            call(0, 0, None, "store", number=7, ttl_ns=100, gives=None),
            call(1, 1_050, 1_060, "get", gives=7),
        ],
    ),
    "stored by a process that was killed, and there for longer": (
        False,
        [
            call(0, 0, None, "store", number=7, ttl_ns=100, gives=None),
            call(1, 1_150, 1_160, "get", gives=7),
        ],
    ),
}


@pytest.mark.parametrize(("right", "calls"), HISTORIES.values(), ids=HISTORIES)
def test_expiring_entry_is_judged_by_its_deadline(right, calls):
    """W1, X1: the judge accepts and refuses histories of deadlines that are written by hand."""
    assert is_right(calls, 0) == right


@pytest.mark.parametrize(
    ("right", "calls"),
    {
        "one lives": (True, [STORED, call(1, 50, 60, "store", key=1, gives=FULL)]),
        "it had expired": (False, [STORED, call(1, 120, 130, "store", key=1, gives=FULL)]),
        "it had expired, another was being stored": (
            True,
            [
                STORED,
                call(2, 115, 125, "store", key=2, ttl_ns=1),
                call(1, 120, 130, "store", key=1, gives=FULL),
            ],
        ),
        "it had been removed": (
            False,
            [STORED, call(2, 20, 30, "remove"), call(1, 50, 60, "store", key=1, gives=FULL)],
        ),
    }.values(),
)
def test_refusal_is_judged_by_the_entries_that_live(right, calls):
    """X1, W2: the judge of refusals is right about calls on a dict with room for one entry."""
    assert (not refused_wrongly(calls, 1)) == right
